"""A buffer of updates that came at different times, and any rule on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._rows.stack import Stack, as_stack, present_weights
from consensus_optax._rows.trees import (
    floating_leaves,
    memory,
    no_params,
    refilled,
    rows_like,
)
from consensus_optax._running.reducer import Aggregator
from consensus_optax._typing import Array, Count, Number, PerRow, Tree
from consensus_optax.federated._staleness import Staleness, polynomial_staleness


class BufferState(NamedTuple):
    r"""State of :func:`buffered`, with K - 1 places.

    Attributes:
      version: () int32, how often the buffer was emptied: what clients are told with
        the parameters, and tell with their updates.
      num_held: () int32, updates that wait.
      num_refused: () int32, updates so far that were not finite or had no weight that
        is one.
      mean_age: () of those that were reduced last.
      rows: a tree like the parameters, (K - 1, \*shape) for every floating leaf,
        float32 at least.
      weights: (K - 1,), 0 where a place is free.
      versions: (K - 1,) int32, that each update started from.
      rule: the rule's own state.
    """

    version: Count
    num_held: Count
    num_refused: Count
    mean_age: Number
    rows: Tree
    weights: PerRow
    versions: Count
    rule: Any


def buffered(
    rule: Aggregator,
    num_updates: int,
    *,
    staleness: Staleness | None = None,
    scales: str = "weights",
) -> Aggregator:
    r"""FedBuff: updates wait until K are there, then a rule reduces them.

    Also known as: FedBuff, buffered asynchronous aggregation.

    .. math:: u = \mathrm{rule}\big(g_1 \dots g_K;\ w_i\, s(\tau_i)\big), \qquad
        \tau_i = \text{version now} - \text{version } i \text{ started from}

    Where fewer are there, the update is zero and not ready: followed by
    :func:`consensus_optax.skip_if_empty`, the server's optimizer stands still. Each
    call may bring one update or several; those of weight 0 are not there, so a round
    that asked N clients may bring the K that answered, and the others later.

    Guarantees: no update is lost: with the call that makes the buffer K or more all of
    them are reduced, and none is kept. The order of arrival matters only to rules to
    which the order of rows does. With K = 1, or where every call brings K and no age,
    it is the rule.
    Edge cases: an update that is not finite, or has no weight that is one, is refused
    and counted. A version that is yet to come counts as now. ``staleness`` of 0: not
    there, though it counts for K. The rule sees K - 1 + B rows, of which those that are
    not there have weight 0; it is given no ``values``, as these are not kept.

    Args:
      rule: a reducer; a function of rows alone.
      num_updates: K.
      staleness: s, a function of the ages, (K - 1 + B,) floating, such as
        `polynomial_staleness`; None: 1.
      scales: ``"weights"``: what an update counts; or ``"rows"``: the update itself is
        made shorter, as in the paper, whose mean is divided by K and not by the sum of
        the s.

    Returns:
      An aggregator, in the place of the rule: ``update(rows, state, params,
      weights=None, versions=None)``; ``versions`` (B,) int32, None for now.

    Raises:
      ValueError: an argument is none of these; when traced, what a reducer raises.

    Cost: K - 1 copies of the parameters, in float32 at least; a pass over them for
    each call. Rows are multiplied out.

    References: Nguyen et al., `Federated Learning with Buffered Asynchronous
    Aggregation <https://arxiv.org/abs/2106.06639>`_, 2022.

    Examples:
      >>> import consensus_optax as co
      >>> server = buffered(co.median(), 3, staleness=polynomial_staleness(0.5))
      >>> params = jnp.zeros(1)
      >>> state = server.init(params)
      >>> for number in (1.0, 9.0, 2.0):
      ...     row = jnp.array([[number]])
      ...     update, state = server.update(row, state, params)
      ...     print(float(update[0]), int(state.num_held), int(state.version))
      0.0 1 0
      0.0 2 0
      2.0 0 1
    """
    if not isinstance(rule, Aggregator):
        _check.fail("rule", "a reducer", type(rule).__name__)
    _check.count("num_updates", num_updates)
    _check.one_of("scales", scales, ("weights", "rows"))
    worth = polynomial_staleness(0.0) if staleness is None else staleness
    _check.function("staleness", worth, "ages")

    def init(params: Tree) -> BufferState:
        dtype = verbs.decision_dtype(params)
        places = num_updates - 1
        place = lambda leaf: jnp.zeros((places, *leaf.shape), dtype)
        zero = lambda: jnp.zeros((), jnp.int32)
        return BufferState(
            version=zero(),
            num_held=zero(),
            num_refused=zero(),
            mean_age=jnp.zeros((), dtype),
            rows=no_params(params, memory(params, place)),
            weights=jnp.zeros(places, dtype),
            versions=jnp.zeros(places, jnp.int32),
            rule=rule.init(params),
        )

    def update(
        updates: Tree,
        state: Any = None,
        params: Tree | None = None,
        *,
        weights: Array | None = None,
        versions: Array | None = None,
        values: Any = None,
        **extra: Any,
    ) -> tuple[Tree, BufferState]:
        del values
        if not isinstance(state, BufferState):
            _check.fail("state", "what `init(params)` gave", type(state).__name__)
        stack = as_stack(updates, params)
        arrived, num_refused = present_weights(stack, weights)
        held = state._replace(rows=floating_leaves(state.rows))
        everyone = _joined(held, stack, arrived, _started(versions, stack, state))
        ages = jnp.maximum(state.version - everyone.versions, 0).astype(stack.dtype)
        there = everyone.weights > 0
        num_held = there.sum(dtype=jnp.int32)

        def reduce() -> tuple[Any, BufferState]:
            factors = worth(ages).astype(stack.dtype)
            rows, counted = everyone.rows, everyone.weights * factors
            if scales == "rows":
                rows = [leaf * _column(factors, leaf) for leaf in rows]
                counted = jnp.where(factors > 0, everyone.weights, 0)
            reduced, inner = rule.update(
                rows_like(updates, rows), state.rule, params, weights=counted, **extra
            )
            total = jnp.where(there, ages, 0).sum()
            return floating_leaves(reduced), everyone._replace(
                version=jnp.asarray(optax.safe_increment(state.version)),
                mean_age=total / jnp.maximum(num_held, 1).astype(stack.dtype),
                weights=jnp.zeros_like(everyone.weights),
                rule=inner,
            )

        def wait() -> tuple[Any, BufferState]:
            nothing = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in stack.params]
            return nothing, everyone._replace(rule=_not_ready(state.rule))

        enough = num_held >= num_updates
        reduced, after = lax.cond(enough, reduce, wait)
        kept = _kept(after, num_updates - 1)
        return stack.rebuild(reduced), kept._replace(
            num_held=jnp.where(enough, 0, num_held),
            num_refused=state.num_refused + num_refused,
            rows=refilled(state.rows, kept.rows),
        )

    # optax names the first argument per_elt_updates; every caller passes it by position
    made = Aggregator(init, update)  # pyrefly: ignore[bad-argument-type]
    made.text = f"buffered({rule}, {num_updates})"
    return made


def _started(versions: Any, stack: Stack, state: BufferState) -> Array:
    """The version that each arriving update started from, (B,) int32."""
    if versions is None:
        return jnp.broadcast_to(state.version, stack.num_rows)
    versions = jnp.asarray(versions, jnp.int32)
    if versions.shape != (stack.num_rows,):
        raise ValueError(
            f"`versions` must have shape ({stack.num_rows},), one for every row; got "
            f"{versions.shape}"
        )
    return versions


def _joined(
    state: BufferState, stack: Stack, weights: Array, versions: Array
) -> BufferState:
    """What waits and what arrives, K - 1 + B rows; zeros where nobody is."""

    def both(held: Array, leaf: Any) -> Array:
        new = verbs.as_array(leaf, held.dtype)
        new = jnp.where(_column(weights > 0, new), new, 0)
        return jnp.concatenate([held, new])

    return state._replace(
        rows=[both(*pair) for pair in zip(state.rows, stack.leaves, strict=True)],
        weights=jnp.concatenate([state.weights, weights]),
        versions=jnp.concatenate([state.versions, versions]),
    )


def _kept(state: BufferState, places: int) -> BufferState:
    """Those who wait, in order of arrival, in K - 1 places; others have weight 0.

    No more than K - 1 are left to wait.
    """
    order = jnp.argsort(state.weights <= 0, stable=True)[:places]
    return state._replace(
        rows=[leaf[order] for leaf in state.rows],
        weights=state.weights[order],
        versions=state.versions[order],
    )


def _not_ready(state: Any) -> Any:
    """The rule's state where it was not asked."""
    if not hasattr(state, "consensus_ready"):
        return state
    return state._replace(consensus_ready=jnp.zeros((), bool))


def _column(flags: Array, like: Array) -> Array:
    """(B,) to (B, 1, ...), to go with rows."""
    return flags.reshape(-1, *[1] * (like.ndim - 1))


def buffer_of(opt_state: Any) -> BufferState:
    """The buffer in an optimizer's state.

    Args:
      opt_state: state of a chain that begins with :func:`buffered`.

    Returns:
      Its part.

    Raises:
      ValueError: there is none, or more than one.

    Examples:
      >>> import consensus_optax as co
      >>> server = optax.chain(buffered(co.mean(), 3), optax.sgd(1.0))
      >>> int(buffer_of(server.init(jnp.zeros(2))).version)
      0
    """
    is_buffer = lambda part: isinstance(part, BufferState)
    parts = jax.tree.leaves(opt_state, is_leaf=is_buffer)
    found = [part for part in parts if is_buffer(part)]
    if len(found) != 1:
        raise ValueError(
            f"`opt_state` must hold one buffer, that of `federated.buffered`; got "
            f"{len(found)}"
        )
    return found[0]
