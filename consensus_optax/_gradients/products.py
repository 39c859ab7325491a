"""Operations that end a gradient, kept as the two factors they would multiply."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from consensus_optax._rows.explicit import explicit_mesh, joined, reshaped
from consensus_optax._rows.outer_product import OuterProduct
from consensus_optax._rows.varying import varying_like


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
        or 1 not in places
        or not jnp.issubdtype(table.dtype, jnp.floating)
    ):
        return None
    of_several = len(places) > 1 and inserted == tuple(sorted(places))  # e[i, j]
    if inserted not in ((), (1,)) and not (of_several and 1 + len(places) < table.ndim):
        return None
    if of_several and inserted != tuple(range(1, 1 + len(places))):
        return None
    clips = eqn.params["mode"] == lax.GatherScatterMode.CLIP
    # clipped, a start within a whole row is its own
    if len(places) > 1 and not (clips or of_several):
        return None
    first = len(inserted) if of_several else 1  # axes that are looked up in
    sides = tuple(updates.shape[axis] for axis in window)
    if sides != (*(() if inserted else (1,)), *table.shape[1 + first :]):
        return None
    num_rows, heights = table.shape[0], table.shape[1 : 1 + first]
    starts = [indices[..., places.index(1 + axis)] for axis in range(first)]
    if clips:
        pairs = zip(starts, heights, strict=True)
        starts = [jnp.clip(start, 0, height - 1) for start, height in pairs]
    left = _line_of(starts, heights)
    terms, width = math.prod(left.shape[1:]), math.prod(table.shape[1 + first :])
    left = reshaped(left, (num_rows, terms), (1, left.ndim))
    others = [axis for axis in range(updates.ndim) if axis not in window]
    right = updates.transpose(*others, *window)
    ends = (1, len(others), right.ndim)
    right = reshaped(right, (num_rows, terms, width), ends)
    row_shape = (math.prod(heights), *table.shape[1 + first :])
    steps = (("reshape", table.shape[1:]),) if of_several else ()
    dtype = table.dtype
    return [OuterProduct(left, right, row_shape=row_shape, steps=steps, dtype=dtype)]


def _line_of(starts: Sequence[Any], heights: Sequence[int]) -> Any:
    """The line of a table of lines, beyond its end where any of several indices is."""
    if len(starts) == 1:
        return starts[0]
    pairs = list(zip(starts, heights, strict=True))
    valid = [(start >= 0) & (start < height) for start, height in pairs]
    line = jnp.zeros_like(starts[0])
    for start, height in pairs:
        line = line * height + start
    return jnp.where(functools.reduce(jnp.logical_and, valid), line, math.prod(heights))


def first_lines(eqn: Any, rows: Any) -> list[OuterProduct] | None:
    """The transpose of ``table[i:j]``: lines among zeros, as if they were looked up.

    As positions are read that a model learns for longer sequences.
    """
    way, (out,) = eqn.params["padding_config"], eqn.outvars
    along = [axis for axis, edges in enumerate(way) if any(edges)]
    low, high, interior = way[1] if len(way) > 1 else (0, 0, 0)
    if rows.ndim < 3 or along != [1] or interior or low < 0 or high < 0:
        return None
    if not jnp.issubdtype(rows.dtype, jnp.floating) or explicit_mesh(rows):
        return None
    terms, shape = rows.shape[1], out.aval.shape
    lines = low + jnp.arange(terms, dtype=jnp.int32)
    lines = varying_like(jnp.broadcast_to(lines, rows.shape[:2]), rows)
    right = rows.reshape(*rows.shape[:2], -1)
    return [OuterProduct(lines, right, row_shape=shape[1:], dtype=rows.dtype)]
