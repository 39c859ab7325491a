"""The face that optax sees of what is done to rows ahead of a reducer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from consensus_optax._rows import verbs
from consensus_optax._rows.explicit import freed, spec_of
from consensus_optax._rows.finite import cleared, finite_rows, spoiled
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rows.stack import as_rows, checked_weights, unknown
from consensus_optax._rows.trees import arrays_of
from consensus_optax._rows.verbs import Leaf
from consensus_optax._rules.kinds import Probing, Remembering, Roster, Scaling
from consensus_optax._running.memory import Memory
from consensus_optax._running.source import Seen
from consensus_optax._running.steps import decided_factors, init_step, probed
from consensus_optax._typing import Array, Count, Tree

Ours = Scaling | Probing | Remembering


class RowTransformState(NamedTuple):
    """State of a row transformation in ``optax.chain``.

    Attributes:
      step: () int32, updates made so far.
      rule_state: the transformation's own; the same in ``co.chain``.
    """

    step: Count
    rule_state: Any


class RowTransform(optax.GradientTransformationExtraArgs):
    """Rows to rows: a transformation of optax that remembers what it does.

    Attributes:
      first: that, for :func:`chain` and engines; optax need not know.
      text: the call that made it.
    """

    first: Ours
    text: str = "row_transform(...)"

    def __repr__(self) -> str:
        """The call that made it."""
        return self.text


def row_transform(step: Ours) -> RowTransform:
    """Makes a row transformation of optax, for ``optax.chain``, of a step."""

    def init(params: Tree) -> RowTransformState:
        params = arrays_of(params)
        own = init_step(step, params, verbs.decision_dtype(params))
        return RowTransformState(jnp.zeros((), jnp.int32), own)

    def update(
        updates: Tree,
        state: Any,
        params: Tree | None = None,
        *,
        weights: Array | None = None,
        **extra: Any,
    ) -> tuple[Tree, RowTransformState]:
        after = jnp.asarray(optax.safe_increment(state.step))
        updates = unknown(updates)
        rows, dtype = as_rows(updates, params)
        if not rows:
            return updates, state._replace(step=after)
        weights = checked_weights(weights, rows[0].shape[0], dtype)
        match step:
            case Scaling():
                updates, new = _scaled(step, updates, rows, weights, state)
            case Probing():
                like = jax.tree.map(_one, updates, is_leaf=is_outer_product)
                new = _probed(step, rows, weights, state, like)
            case Remembering():
                updates, new = _replaced(step, updates, rows, weights, state, extra)
        return updates, RowTransformState(after, new)

    made = RowTransform(init, update)
    made.first = step
    return made


def in_memory(
    rows: list[Leaf], weights: Array, step: Array, like: Tree = None
) -> Memory:
    """The rows as a source, in which all is known of them."""
    roster = Roster(weights, step, {}, like=like)
    return Memory(rows, Seen(roster, jnp.zeros((), jnp.int32)))


def _one(leaf: Any) -> jax.ShapeDtypeStruct:
    """What a row of a leaf is like."""
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)


def _scaled(
    step: Scaling, updates: Tree, rows: list[Leaf], weights: Array, state: Any
) -> tuple[Tree, Any]:
    """Row i of every floating leaf times its number; a row that has none is nan.

    So the reducer excludes and counts it: a factor of 0 would turn a row that overflows
    into a sound row of zeros.
    """
    stops = jax.debug_nans.value  # eagerly, at a nan made of a broken row or on purpose
    finite = jnp.ones(weights.shape, bool)
    if stops or step.degree:  # where a scale makes finite what is not
        finite = finite_rows(rows, weights.dtype)
        weights = jnp.where(finite, weights, 0)
    if stops:
        clear = lambda leaf: cleared(leaf, finite)
        updates = jax.tree.map(clear, updates, is_leaf=is_outer_product)
        rows = list(map(clear, rows))

    def decide(rows: Any, weights: Array, count: Array) -> Any:
        decided, _ = decided_factors(step, in_memory(rows, weights, count))
        own = [jnp.broadcast_to(x, weights.shape) for x in decided[:2]]
        return *own, decided.state

    by_row = PartitionSpec(spec_of(jax.tree.leaves(rows)[0])[0])
    given = rows, weights, state.step
    factors, sound, new = freed(decide, given, (by_row, by_row, PartitionSpec()))
    sound &= finite
    factors = factors if stops else jnp.where(sound, factors, jnp.nan)

    def scale(leaf: Any) -> Any:
        moves = jnp.issubdtype(leaf.dtype, jnp.floating)
        scaled = verbs.scale(leaf, factors) if moves else leaf
        if not is_outer_product(leaf):  # optax has rows in their own dtype
            scaled = scaled.astype(leaf.dtype)
        return spoiled(scaled, sound) if stops else scaled

    return jax.tree.map(scale, updates, is_leaf=is_outer_product), new


def _probed(
    step: Probing, rows: list[Leaf], weights: Array, state: Any, like: Tree
) -> Any:
    """What is kept of the rows that are finite."""

    def look(rows: Any, weights: Array, state: Any) -> Any:
        there = finite_rows(rows, weights.dtype) & (weights > 0)
        weights = jnp.where(there, weights, 0)
        if jax.debug_nans.value:
            rows = [cleared(leaf, there) for leaf in rows]
        source = in_memory(rows, weights, state.step, like)
        return probed(step, source, state.rule_state)[1]

    return freed(look, (rows, weights, state), PartitionSpec())


def _replaced(
    step: Remembering,
    updates: Tree,
    rows: list[Leaf],
    weights: Array,
    state: Any,
    extra: dict[str, Any],
) -> tuple[Tree, Any]:
    """The rows that take their place; a row with a non-finite entry is nan."""
    roster = Roster(weights, state.step, extra)
    news, new = step.replace(rows, roster, state.rule_state)
    flat, treedef = jax.tree.flatten(updates, is_leaf=is_outer_product)
    queue = iter(news)
    moves = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in flat]
    leaves = [next(queue) if yes else x for yes, x in zip(moves, flat, strict=True)]
    return jax.tree.unflatten(treedef, leaves), new
