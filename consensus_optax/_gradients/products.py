"""Operations that end a gradient, kept as the two factors they would multiply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from consensus_optax._rows.explicit import joined, reshaped
from consensus_optax._rows.outer_product import OuterProduct


def product(eqn: Any, lhs: Any, rhs: Any) -> list[OuterProduct] | None:
    """A contraction whose first batch axis is the example axis; others are layers."""
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    (out,) = eqn.outvars
    if not lhs_batch or not jnp.issubdtype(out.aval.dtype, jnp.floating):
        return None
    layers = out.aval.shape[1 : len(lhs_batch)]
    left, m = _as_factor(lhs, lhs_batch, lhs_sum)
    right, n = _as_factor(rhs, rhs_batch, rhs_sum)
    return [
        OuterProduct(
            left,
            right,
            row_shape=(*layers, *m, *n),
            dtype=out.aval.dtype,
            precision=eqn.params["precision"],
        )
    ]


def _as_factor(
    operand: Any, batch: Sequence[int], summed: Sequence[int]
) -> tuple[Any, tuple[int, ...]]:
    """An operand as (B, T, M) or (B, L, T, M), and the axes that M stands for."""
    free = [axis for axis in range(operand.ndim) if axis not in (*batch, *summed)]
    shape = tuple(operand.shape[axis] for axis in free)
    terms = math.prod(operand.shape[axis] for axis in summed)
    moved = operand.transpose(*batch, *summed, *free)
    if len(batch) > 2:
        moved = joined(moved, 1, len(batch))
    sides = moved.shape[: min(len(batch), 2)]
    ends = [*range(1, len(sides) + 1), len(sides) + len(summed), moved.ndim]
    return reshaped(moved, (*sides, terms, math.prod(shape)), ends), shape


def look_up(
    eqn: Any, table: Any, indices: Any, updates: Any
) -> list[OuterProduct] | None:
    """The transpose of ``table[indices]`` over whole rows: updates added into zeros.

    The left factor holds the indices; as a matrix its rows would be one-hot.
    """
    dims = eqn.params["dimension_numbers"]
    window, inserted = dims.update_window_dims, tuple(dims.inserted_window_dims)
    places = tuple(dims.scatter_dims_to_operand_dims)
    if (
        table.ndim < 3
        or tuple(dims.operand_batching_dims) != (0,)
        or tuple(dims.scatter_indices_batching_dims) != (0,)
        or inserted not in ((), (1,))
        or 1 not in places
        or not jnp.issubdtype(table.dtype, jnp.floating)
    ):
        return None
    clips = eqn.params["mode"] == lax.GatherScatterMode.CLIP
    if len(places) > 1 and not clips:  # clipped, a start within a whole row is its own
        return None
    sides = tuple(updates.shape[axis] for axis in window)
    if sides != (*(() if inserted else (1,)), *table.shape[2:]):
        return None
    num_rows, height = table.shape[:2]
    left = indices[..., places.index(1)]
    terms, width = math.prod(left.shape[1:]), math.prod(table.shape[2:])
    left = reshaped(left, (num_rows, terms), (1, left.ndim))
    if clips:
        left = jnp.clip(left, 0, height - 1)
    others = [axis for axis in range(updates.ndim) if axis not in window]
    right = updates.transpose(*others, *window)
    ends = (1, len(others), right.ndim)
    right = reshaped(right, (num_rows, terms, width), ends)
    row_shape = (height, *table.shape[2:])
    return [OuterProduct(left, right, row_shape=row_shape, dtype=table.dtype)]
