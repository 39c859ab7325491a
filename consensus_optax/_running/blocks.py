"""Columns run block by block, so that nothing of the size of a stack is copied."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from consensus_optax._rows.layers import layer
from consensus_optax._rows.outer_product import (
    Factored,
    OuterProduct,
    contract,
    is_outer_product,
    over_rows,
    restored,
)
from consensus_optax._rows.sums import total_of
from consensus_optax._rows.varying import varying_like
from consensus_optax._rows.verbs import AnyLeaf, Mixed, present_rows
from consensus_optax._rules.kinds import Roster
from consensus_optax._typing import Array


class _Part(NamedTuple):
    """Coordinates that blocks are read from: one leaf, or small ones strung together.

    Attributes:
      read: place of a block to its entries, (B, length) with length <= width.
      places: where blocks start, in units of ``read``; the last two may overlap.
      unit: coordinates for each place.
      size: coordinates in all.
    """

    read: Callable[[Array], Array]
    places: np.ndarray
    unit: int
    size: int


# Entries of a block: what stays in a core's cache, or what fills an accelerator. They
# change speed and memory alone.
ENTRIES_ON_CPU = 1 << 19
ENTRIES_ELSEWHERE = 1 << 25
_FULL = 7 / 8  # of a block, so that no more than a few are read for it


def reduce_columns(
    reduce: Callable[[Array, Array], Array], leaves: Sequence[AnyLeaf], roster: Roster
) -> list[Array]:
    """reduce((B, block), weights) to (block,) over all coordinates of all leaves.

    One loop serves the whole model, so a rule is compiled once however many leaves
    there are; outer products are multiplied out one block at a time.
    """
    in_blocks = lambda entries: lambda: _in_blocks(reduce, leaves, roster, entries)
    if sum(map(_row_size, leaves)) * roster.weights.shape[0] <= ENTRIES_ON_CPU:
        return in_blocks(ENTRIES_ON_CPU)()  # one block everywhere
    cpu, other = in_blocks(ENTRIES_ON_CPU), in_blocks(ENTRIES_ELSEWHERE)
    return lax.platform_dependent(cpu=cpu, default=other)


def _in_blocks(
    reduce: Callable[[Array, Array], Array],
    leaves: Sequence[AnyLeaf],
    roster: Roster,
    entries: int,
) -> list[Array]:
    """The same in blocks of about so many entries."""
    dtype, count = roster.weights.dtype, roster.weights.shape[0]
    products = [leaf for leaf in leaves if is_outer_product(leaf)]
    width = min(entries // count, sum(_row_size(leaf) for leaf in leaves))
    width = max([width, 1, *(leaf.sides[2] for leaf in products)])
    parts: list[_Part] = []
    place: dict[int, int] = {}  # leaf to its first coordinate in the end
    small = [i for i, leaf in enumerate(leaves) if _row_size(leaf) < width]
    start = 0
    for i in small:
        place[i], start = start, start + _row_size(leaves[i])
    if small:
        flat = [present_rows(leaves[i], roster.present, dtype) for i in small]
        flat = [leaf.reshape(count, -1) for leaf in flat]
        flat += [jnp.zeros((count, max(width - start, 0)), dtype)]
        parts += [_array_part(jnp.concatenate(flat, 1), width)]
    for i in sorted(set(range(len(leaves))) - set(small)):
        place[i] = sum(part.size for part in parts)
        leaf = leaves[i]
        if is_outer_product(leaf):
            parts += [_outer_product_part(leaf, width)]
        elif isinstance(leaf, jax.Array):
            parts += [_array_part(leaf, width)]
        else:
            parts += [_array_part(present_rows(leaf, roster.present, dtype), width)]
    merged = _over_blocks(reduce, parts, leaves, roster, width)

    def own(i: int, leaf: AnyLeaf) -> Array:
        entries = merged[place[i] : place[i] + _row_size(leaf)]
        if is_outer_product(leaf) and i not in small:
            return restored(leaf, entries)
        return entries.reshape(_row_shape(leaf))

    return [own(i, leaf) for i, leaf in enumerate(leaves)]


def _row_shape(leaf: AnyLeaf) -> tuple[int, ...]:
    """Shape of one row."""
    rows: Any = leaf.leaf if isinstance(leaf, Mixed) else leaf
    return rows.shape[1:]


def _row_size(leaf: AnyLeaf) -> int:
    """Coordinates of one row."""
    return int(np.prod(_row_shape(leaf)))


def _places(size: int, length: int) -> np.ndarray:
    """Starts of blocks of one length that cover a size, ascending."""
    return np.minimum(np.arange(0, size, length), size - length).astype(np.int32)


def _array_part(stack: Array, width: int) -> _Part:
    """Blocks of some lines of arrays (B, ..., N), or of (B, P).

    Lines where these fill a block nearly: rows strung out whole would be a copy of all
    of them where arrays lie in tiles, as on a TPU.
    """
    count, *sides = stack.shape
    sides = sides or [1]  # of a number
    size, n = math.prod(sides), sides[-1]
    length = min(width // n * n, size)
    if len(sides) < 2 or length < _FULL * width:
        n, length = 1, width
    lines = stack.reshape(count, size // n, n)

    def read(start: Array) -> Array:
        block = lax.dynamic_slice_in_dim(lines, start, length // n, 1)
        return block.reshape(count, length)

    return _Part(read, _places(size // n, length // n), n, size)


def _outer_product_part(leaf: Factored, width: int) -> _Part:
    """Blocks of the (M, N) matrices that rows are: some of their M lines.

    Layers lie one after the other, and a block is within one.
    """
    _, m, n = leaf.sides
    num_layers = leaf.num_layers or 1
    lines = min(width // n, m)
    dtype = jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32

    def of_part(part: OuterProduct, start: Array) -> Array:
        if part.is_look_up:
            look_up = lambda a, d: jax.ops.segment_sum(d.astype(dtype), a, lines)
            block = over_rows(look_up, part.left - start, part.right)
        else:  # of an array that rows share a line is N numbers of one factor
            each = part.sides[1] // m
            cut = lax.dynamic_slice_in_dim(part.left, each * start, each * lines, 2)
            block = over_rows(functools.partial(contract, part), cut, part.right)
        return block.astype(leaf.dtype).reshape(block.shape[0], -1)

    def read(start: Array) -> Array:  # (B, lines * N)
        one = layer(leaf, start // m)
        return total_of(lambda part: of_part(part, start % m), one)

    places = [number * m + _places(m, lines) for number in range(num_layers)]
    return _Part(read, np.concatenate(places), n, num_layers * m * n)


def _over_blocks(
    reduce: Callable[[Array, Array], Array],
    parts: list[_Part],
    leaves: Sequence[AnyLeaf],
    roster: Roster,
    width: int,
) -> Array:
    """All parts reduced, one after the other in one array.

    Blocks shorter than ``width`` are filled up; what comes out beyond their end is
    overwritten by the block that follows.
    """
    dtype = roster.weights.dtype

    def reader(part: _Part) -> Callable[[Array], Array]:
        def read(start: Array) -> Array:
            block = jnp.where(roster.present[:, None], part.read(start), 0).astype(
                dtype
            )
            return jnp.pad(block, ((0, 0), (0, width - block.shape[1])))

        return read

    readers = [reader(part) for part in parts]
    owner = np.repeat(np.arange(len(parts)), [len(part.places) for part in parts])
    places = np.concatenate([part.places for part in parts])
    first = np.cumsum([0, *(part.size for part in parts)])
    targets = first[owner] + places * np.array([part.unit for part in parts])[owner]

    def turn(index: Array, merged: Array) -> Array:
        start = jnp.asarray(places)[index]
        block = lax.switch(jnp.asarray(owner, jnp.int32)[index], readers, start)
        update = reduce(block, roster.weights)
        where = jnp.asarray(targets)[index]
        return lax.dynamic_update_slice_in_dim(merged, update, where, 0)

    start = varying_like(
        jnp.zeros(int(first[-1]) + width, dtype), leaves, roster.weights
    )
    return lax.fori_loop(0, len(places), turn, start)
