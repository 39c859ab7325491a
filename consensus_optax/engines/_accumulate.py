"""A reducer of the rows of several steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from consensus_optax import _check
from consensus_optax._rows.stack import Stack, as_stack, checked_weights
from consensus_optax._rows.trees import arrays_of, floating_leaves, rows_like
from consensus_optax._rules.kinds import WORDS, Fold
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Aggregator, Reducer
from consensus_optax._typing import Array, Count, Tree
from consensus_optax.engines.steps import statistics
from consensus_optax.engines.steps.kept import (
    from_parts,
    parts_of,
    places,
    together,
    with_batch,
)


class AccumulateState(NamedTuple):
    """State of :func:`accumulate`.

    Attributes:
      num_held: () int32, batches that wait for the rest, 0 to k - 1.
      merged: of a fold the statistics of their rows; else None.
      batches: what is kept of each batch, (k, B, ...): weights, keywords with one entry
        for every row, and rows, of a fold none. None before the first batch, if
        ``like`` was not given.
      reducer_state: the reducer's own, of its last update.
    """

    num_held: Count
    merged: Any
    batches: Any
    reducer_state: Any


@named
def accumulate(
    reducer: optax.GradientTransformation,
    every_k: int,
    *,
    like: Tree = None,
    per_row: tuple[str, ...] = ("values",),
) -> optax.GradientTransformation:
    r"""Waits for the rows of k steps and reduces them together.

    .. math:: u_t = \begin{cases} R(J_{t-k+1}, \dots, J_t) & k \mid t \\ 0 & \text{else}
        \end{cases}

    with t counted from 1 and the rows of all k batches as one stack. What averages
    updates, as ``optax.MultiSteps`` after a reducer, gives another answer for every
    rule but the mean of equally many rows: of two batches the mean of their medians is
    not the median, and what each agrees on is not what all agree on.

    Guarantees: the k-th update, and the reducer's state after it, are those of
    ``reducer`` on the concatenation of the k batches, their ``weights``, and keywords
    that ``per_row`` names; of other keywords those of the k-th call count. A row with a
    non-finite entry, and one of weight 0, counts nowhere. In between the update is
    exactly zero and the reducer's state stands still, so schedules count updates.
    Edge cases: Adam moves on by its momentum when it is fed the zeros in between: go
    around it with :func:`skip_if_empty`. Batches must have one shape: pad the last one
    and give the padding weight 0. A keyword of ``per_row`` that is not given counts as
    nan in that call.

    Args:
      reducer: any reducer of this library, :func:`sharded` of one, or a chain that ends
        in one, such as ``optax.chain(co.clip_examples(1.0), co.mean())``, which sees
        the rows of all k batches at once.
      every_k: the number k of batches, at least 1.
      like: rows of one batch, or their shapes, as ``jax.eval_shape`` gives them. The
        state then has its shapes from ``init`` on, which ``lax.scan`` and restored
        checkpoints need. None: the first update makes room, a second compilation.
      per_row: keyword arguments of ``update`` with one number for every row, (B,).

    Returns:
      An aggregator as any reducer is, first in ``optax.chain``. For losses in
      microbatches within one step see :func:`value_and_reduced_grad`.

    Raises:
      ValueError: a static argument is none; when traced: a batch has not the shape of
        the first, and as the reducer does.

    Cost: memory, besides the reducer's own. A fold keeps its statistics, as many arrays
    like the parameters as it has (``sign_consensus()`` one), and B k weights. Every
    other rule, and any that is sharded or in a chain, needs the rows: k stacks as they
    come, factored rows as their factors. Time: that of a fold's pass in each step; rows
    are written once and reduced in the k-th step alone.

    On a mesh rows are kept where they lie. Inside ``jax.shard_map`` rows of all batches
    of one device come before those of the next, which matters to rules that ask for an
    order.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> tx = optax.chain(co.accumulate(co.median(), 2), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> state = tx.init(params)
      >>> for rows in ([[1., 0.], [2., 5.]], [[3., 6.], [9., 7.]]):
      ...     updates, state = tx.update(jnp.array(rows), state, params)
      ...     print(updates)
      [-0. -0.]
      [-2.5 -5.5]
    """
    if not isinstance(reducer, optax.GradientTransformation):
        wanted = "a reducer, or a chain that ends in one"
        _check.fail("reducer", wanted, reducer)
    _check.count("every_k", every_k)
    inner = optax.with_extra_args_support(reducer)
    fold = reducer.rule if isinstance(reducer, Reducer) else None
    fold = fold if isinstance(fold, Fold) else None

    def of_batch(stack: Stack, weights: Array, columns: dict[str, Array]) -> Tree:
        rows = None if fold else parts_of(stack.leaves)
        return {"rows": rows, "weights": weights, **columns}

    def room(stack: Stack, batch: Tree) -> tuple[Any, Tree]:
        empty = statistics.nothing(fold, stack) if fold else None
        return empty, places(batch, every_k)

    def init(params: Tree) -> AccumulateState:
        zero = jnp.zeros((), jnp.int32)
        state = AccumulateState(zero, None, None, reducer.init(params))
        if not jax.tree.leaves(params):  # what is kept is no parameter
            return state._replace(merged=zero, batches=zero)
        if like is None:
            return state
        stack = as_stack(jax.eval_shape(lambda rows: rows, like), arrays_of(params))
        number = jax.ShapeDtypeStruct((stack.num_rows,), stack.dtype)
        columns = dict.fromkeys(per_row, number)
        shapes = jax.eval_shape(lambda tree: tree, parts_of(stack.leaves))
        batch = {"rows": None if fold else shapes, "weights": number, **columns}
        merged, kept = room(stack, batch)
        return state._replace(merged=merged, batches=kept)

    def update(
        updates: Tree,
        state: Any = None,
        params: Tree | None = None,
        *,
        weights: Array | None = None,
        **extra: Any,
    ) -> tuple[Tree, AccumulateState]:
        if not isinstance(state, AccumulateState):
            wanted = "what `init(params)` or the last update gave"
            _check.fail("state", wanted, type(state).__name__)
        _check.known_words(extra, (*WORDS, *per_row))
        params = arrays_of(params)
        stack = as_stack(updates, params)
        if not stack.leaves:
            return stack.rebuild([]), state
        weights = checked_weights(weights, stack.num_rows, stack.dtype)
        told = [name for name in per_row if extra.get(name) is not None]
        columns = {
            name: _column(name, extra.pop(name, None), stack) for name in per_row
        }
        batch = of_batch(stack, weights, columns)
        merged, kept = state.merged, state.batches
        if kept is None:
            merged, kept = room(stack, batch)
        _check_batch(batch, kept)
        if fold:
            first = state.num_held == 0
            merged, batch["weights"] = statistics.with_batch(
                fold, merged, stack, weights, first
            )
        kept = with_batch(kept, batch, state.num_held)

        def reduce() -> tuple[list[Array], Any]:
            whole = together(kept)
            words = {**extra, **{name: whole[name] for name in told}}
            old = state.reducer_state
            if fold:
                given = merged, whole["weights"], old, words
                update, new = statistics.reduced(fold, stack, *given)
                return _like(update, stack.params), new
            pairs = zip(stack.leaves, whole["rows"], strict=True)
            rows = rows_like(updates, [from_parts(*pair) for pair in pairs])
            step, new = inner.update(
                rows, old, params, weights=whole["weights"], **words
            )
            return _like(floating_leaves(step), stack.params), new

        def wait() -> tuple[list[Array], Any]:
            zeros = [jnp.zeros_like(param) for param in stack.params]
            return zeros, state.reducer_state

        num_held = state.num_held + 1
        leaves, inner_state = lax.cond(num_held == every_k, reduce, wait)
        num_held = jnp.where(num_held == every_k, 0, num_held)
        new = AccumulateState(num_held, merged, kept, inner_state)
        return stack.rebuild(leaves), new

    # optax names the first argument per_elt_updates; every caller passes it by position
    return Aggregator(init, update)  # pyrefly: ignore[bad-argument-type]


def _column(name: str, given: Any, stack: Stack) -> Array:
    """One number for every row; where none is given no finite one.

    A nan, but where JAX stops at the first.
    """
    if given is None:
        none = jnp.inf if jax.debug_nans.value else jnp.nan
        return jnp.full(stack.num_rows, none, stack.dtype)
    column = jnp.asarray(given)
    if column.shape != (stack.num_rows,):
        raise ValueError(
            f"`{name}` must have shape ({stack.num_rows},), one for every row; got "
            f"{column.shape}."
        )
    return column.astype(stack.dtype)


def _check_batch(batch: Tree, kept: Tree) -> None:
    """All batches are of one shape, factored alike."""
    shapes = lambda tree, cut: [
        (x.shape[cut:], jnp.dtype(x.dtype)) for x in jax.tree.leaves(tree)
    ]
    if shapes(batch, 0) != shapes(kept, 1):
        num_rows, wanted = batch["weights"].shape[0], kept["weights"].shape[1]
        found = f"{num_rows} rows after {wanted}"
        if num_rows == wanted:
            found = "rows that are factored in another way, or have another dtype"
        raise ValueError(
            f"All batches that are accumulated must have one shape; got {found}. Pad a "
            "last batch, and give the rows that are not there `weights` of 0."
        )


def _like(update: list[Array], params: list[Any]) -> list[Array]:
    """In the parameters' dtypes: a rule may answer in a narrower one."""
    return [x.astype(p.dtype) for x, p in zip(update, params, strict=True)]
