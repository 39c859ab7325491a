"""What a model keeps beside its parameters, when every row has called it by itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._gradients.arguments import Argnums, arranger, positions
from consensus_optax._gradients.examples import example_numbers
from consensus_optax._gradients.per_example import per_example_value_and_grad
from consensus_optax._rows.stack import checked_weights
from consensus_optax._rows.trees import leaf_name
from consensus_optax._rows.verbs import decision_dtype
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._typing import Array, AxisName
from consensus_optax.engines._value_and_reduced_grad import value_and_reduced_grad

# Of parameters, the number of the row's first example, and its arguments, to the loss,
# and to what the call left of the state, by name, and aux.
OfRow = Callable[..., tuple[Array, tuple[dict[str, Any], Any]]]
# Of a loss with aux, and its batch arguments, to a function of its arguments that gives
# ((value, aux), ...): rows, or what became of them.
Engine = Callable[[Callable[..., Any], tuple[int, ...]], Callable[..., Any]]


class Kept(NamedTuple):
    """What is left by the calls of all rows.

    Attributes:
      value: what the engine makes of the losses: all of them, or their mean.
      state: by name what the calls of the rows left, merged to one.
      aux: of the batch.
      made: whatever else the engine gives: rows, or an update and a reducer's state.
    """

    value: Array
    state: dict[str, Any]
    aux: Any
    made: tuple[Any, ...]


def rows_of(options: dict[str, Any]) -> Engine:
    """The engine that gives rows, by :func:`per_example_value_and_grad`."""
    return lambda loss, batched: per_example_value_and_grad(
        loss, batch_argnums=batched, has_aux=True, **options
    )


def reduced_by(
    reducer: Any, options: dict[str, Any], state: Any, weights: Any, extra: Any
) -> Engine:
    """The engine that reduces them, by :func:`value_and_reduced_grad`."""
    return lambda loss, batched: functools.partial(
        value_and_reduced_grad(
            loss, reducer, batch_argnums=batched, has_aux=True, **options
        ),
        state=state,
        weights=weights,
        extra=extra,
    )


def with_state(
    engine: Engine,
    of_row: OfRow,
    before: dict[str, Any],
    params: Any,
    args: Sequence[Any],
    weights: Array | None,
    axis_name: AxisName | None,
    batch_argnums: Argnums,
    options: dict[str, Any],
    counts: Collection[str] = (),
) -> Kept:
    """Rows of a loss that leaves something behind, which is merged.

    Args:
      engine: what rows are computed by.
      of_row: the loss of a row: ``of_row(params, number, *args)``.
      before: by name the state that a row's call starts with; names that are not there
        are of rows, and stay so.
      params: what is differentiated.
      args: the others, as they are; the first of them has position 1.
      weights: (R,) or None, what a row's state counts.
      axis_name: mesh axes along which examples differ, inside ``jax.shard_map``.
      batch_argnums: of ``args``.
      options: of the engine; ``group_size`` and ``num_rows`` are read.
      counts: names of integers that are known to be the same after every row.
    """
    batched = positions("batch_argnums", batch_argnums, 1 + len(args))
    numbers = example_numbers([args[i - 1] for i in batched], axis_name)
    given = params, numbers, *args
    own = 1, *(i + 1 for i in batched)

    def loss(params: Any, numbers: Array, *args: Any) -> Any:
        value, (left, aux) = of_row(params, numbers[0], *args)
        return value, (value, left, aux)

    (value, (values, left, aux)), *made = engine(loss, own)(*given)
    kept = {name: left[name] for name in left if name in before}
    size = {key: options[key] for key in ("group_size", "num_rows") if key in options}
    unsure = {name: left[name] for name in kept if name not in counts}
    _check_integers(loss, given, own, unsure, size)
    merged = _merged(before, kept, values, weights, axis_name)
    return Kept(value, {**left, **merged}, aux, tuple(made))


def _merged(
    before: dict[str, Any],
    left: dict[str, Any],
    values: Array,
    weights: Array | None,
    axis_name: AxisName | None,
) -> dict[str, Any]:
    """One state of those of all rows: means of numbers, anything else is that of one.

    Rows that are not finite, in their loss or their state, do not count, as they do not
    for a reducer; if none does, nothing has changed.
    """
    leaves = jax.tree.leaves(left)
    there = jnp.isfinite(values)
    for leaf in filter(_is_floating, leaves):
        there &= jnp.isfinite(leaf).reshape(len(leaf), -1).all(1)
    dtype = decision_dtype([leaf for leaf in leaves if _is_floating(leaf)] or values)
    given = checked_weights(weights, there.shape[0], dtype)
    counts = jnp.where(there & (given > 0), given, 0)
    add = lambda x: x if axis_name is None else lax.psum(x, axis_name)
    total = add(counts.sum())

    def merge(before: Any, rows: Array) -> Any:
        if jnp.issubdtype(rows.dtype, jax.dtypes.prng_key):
            return before
        if not _is_floating(rows):
            return rows[0] if axis_name is None else _same(rows[0], axis_name)
        present = jnp.where(_beside(counts, rows) > 0, rows, 0).astype(dtype)
        parts = jnp.tensordot(counts, present, 1, precision="highest")
        mean = add(parts) / positive_or_one(total)
        return jnp.where(total > 0, mean.astype(rows.dtype), before)

    return {name: jax.tree.map(merge, before[name], left[name]) for name in left}


def _same(number: Array, axis_name: AxisName) -> Array:
    """What all devices have alike, typed as such."""
    widest = lax.pmax(number.astype(jnp.int32), axis_name)
    return widest.astype(number.dtype)


def _beside(counts: Array, rows: Array) -> Array:
    return counts.reshape(-1, *[1] * (rows.ndim - 1))


def _is_floating(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _check_integers(
    loss: Callable[..., Any],
    given: Sequence[Any],
    batched: tuple[int, ...],
    left: dict[str, Any],
    size: dict[str, Any],
) -> None:
    """Raises if a number that has no mean, such as a count, depends on the row."""
    flat, _ = jax.tree_util.tree_flatten_with_path(left)
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    has_mean = lambda leaf: _is_floating(leaf) or is_key(leaf)
    whole = [i for i, (_, leaf) in enumerate(flat) if not has_mean(leaf)]
    arrange = arranger(
        0,
        batched,
        True,
        size.get("group_size", 1),
        None,
        num_rows=size.get("num_rows"),
    )

    def depend(numbers: Sequence[int]) -> bool:
        """Whether any of these leaves does, as what is mapped over rows then is."""

        def of_leaves(*args: Any) -> list[Array]:
            _, (_, state, _) = loss(*args)
            leaves = jax.tree.leaves({name: state[name] for name in left})
            return [leaves[i] for i in numbers]

        function, in_axes, args = arrange(given).without_shared(of_leaves)
        try:
            jax.eval_shape(jax.vmap(function, tuple(in_axes), None), *args)
        except ValueError:
            return True
        return False

    if whole and depend(whole):
        path, _ = next(flat[i] for i in whole if depend([i]))
        raise ValueError(
            "What the model keeps must be floating where rows differ in it, to be "
            f"averaged over them; {leaf_name(path)} is not, and depends on the "
            "example. Return it as aux, or keep it out of the loss."
        )
