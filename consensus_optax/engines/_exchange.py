"""Rows to coordinates and back: one all-to-all, one all-gather.

Device n of N holds of every leaf the coordinates from n to n + 1 N-ths, of all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from consensus_optax._coordinates import Coordinates
from consensus_optax._typing import Array

AxisName = str | tuple[str, ...]


class Spread(NamedTuple):
    """How one parameter lies on the mesh axes that parameters are sharded along.

    Attributes:
      shape: of the part that a device has.
      axes: for every axis of the array the mesh axes that it is cut along, often none.
    """

    shape: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]

    @property
    def mesh_axes(self) -> tuple[str, ...]:
        """All mesh axes that the parameter is cut along."""
        return tuple(name for names in self.axes for name in names)

    @property
    def whole(self) -> tuple[int, ...]:
        """Shape of the whole parameter."""
        pairs = zip(self.shape, self.axes, strict=True)
        return tuple(
            size * (lax.axis_size(names) if names else 1) for size, names in pairs
        )

    def part(self, whole: Array) -> Array:
        """The part that this device has of an array like the parameter."""
        for axis, names in enumerate(self.axes):
            if names:
                start = lax.axis_index(names) * self.shape[axis]
                whole = lax.dynamic_slice_in_dim(whole, start, self.shape[axis], axis)
        return whole


def deal(leaves: Sequence[Array], axis_name: AxisName) -> list[Array]:
    """Rows (L, ...) of this device to its coordinates of all N L rows, (N L, width)."""
    count = lax.axis_size(axis_name)

    def send(strung: Array) -> Array:  # (L, N, W)
        dealt = lax.all_to_all(strung.swapaxes(0, 1), axis_name, 0, 0, tiled=True)
        return dealt.reshape(math.prod(dealt.shape[:2]), dealt.shape[2])  # (N L, W)

    return _strung([_in_parts(leaf, count) for leaf in leaves], send)


def collect(
    blocks: Sequence[Array], shapes: Sequence[tuple[int, ...]], axis_name: AxisName
) -> list[Array]:
    """Blocks of coordinates (width,) to the whole leaves, the same on every device."""

    def send(strung: Array) -> Array:
        return lax.all_gather(strung, axis_name, to="invarying")  # (N, W)

    gathered = _strung(blocks, send)
    pairs = zip(gathered, shapes, strict=True)
    return [
        leaf.reshape(-1)[: math.prod(shape)].reshape(shape) for leaf, shape in pairs
    ]


def own_block(leaf: Array, axis_name: AxisName) -> Array:
    """The coordinates of one leaf that this device holds, (width,)."""
    parts = _in_parts(leaf[None], lax.axis_size(axis_name))[0]
    return lax.dynamic_index_in_dim(parts, lax.axis_index(axis_name), keepdims=False)


def coordinates_of_rows(spreads: Sequence[Spread]) -> Coordinates:
    """Whole rows are at hand, as far as the parameters are."""
    return _coordinates(spreads, (), lambda index, leaf: leaf)


def coordinates_of_blocks(
    spreads: Sequence[Spread], axis_name: AxisName
) -> Coordinates:
    """A device's N-th of the coordinates, padded, is at hand."""
    device = lax.axis_index(axis_name)

    def unpadded(index: int, block: Array) -> Array:
        places = device * block.shape[0] + jnp.arange(block.shape[0])
        return jnp.where(places < math.prod(spreads[index].shape), block, 0)

    axes = (axis_name,) if isinstance(axis_name, str) else axis_name
    blocks = _coordinates(spreads, axes, unpadded)

    def draw(index: int, leaf: Array, make: Callable[..., Array]) -> Array:
        del leaf
        spread = spreads[index]
        return own_block(spread.part(make(spread.whole)), axis_name)

    return blocks._replace(draw=draw)


def _coordinates(
    spreads: Sequence[Spread],
    axes: tuple[str, ...],
    unpadded: Callable[[int, Array], Array],
) -> Coordinates:
    """Sums over the devices of ``axes`` and over those with parts of parameters."""
    along = dict.fromkeys(name for spread in spreads for name in spread.mesh_axes)
    everywhere = (*axes, *along)
    total: Callable[[Any], Any] = lambda tree: tree
    if everywhere:
        total = lambda tree: lax.psum(tree, everywhere)
    counted = None
    if along:
        counted = [_is_first(set(along) - set(s.mesh_axes)) for s in spreads]

    def sums(leaves: Sequence[Array]) -> list[Array]:
        own = [jnp.sum(unpadded(index, leaf)) for index, leaf in enumerate(leaves)]
        if counted is not None:
            pairs = zip(own, counted, strict=True)
            own = [jnp.where(counts, value, 0) for value, counts in pairs]
        return list(total(jnp.stack(own)))

    sizes = lambda leaves: [math.prod(spread.whole) for spread in spreads]
    return Coordinates(total, sums, sizes, counted=counted)


def _is_first(axes: set[str]) -> Array:
    """Whether this device is the first along mesh axes that all hold the same."""
    first = jnp.ones((), bool)
    for name in sorted(axes):
        first &= lax.axis_index(name) == 0
    return first


def _in_parts(leaf: Array, count: int) -> Array:
    """(L, ...) cut into N equal parts, the last ones padded, (L, N, width)."""
    size = math.prod(leaf.shape[1:])
    width = -(-size // count)
    rows = leaf.reshape(leaf.shape[0], size)
    padding = ((0, 0), (0, count * width - size))
    padded = rows if size == count * width else jnp.pad(rows, padding)
    return padded.reshape(leaf.shape[0], count, width)


def _strung(arrays: Sequence[Array], send: Callable[[Array], Array]) -> list[Array]:
    """Sends arrays of one dtype strung together along the last axis: few launches."""
    sent: dict[int, Array] = {}
    for dtype in dict.fromkeys(array.dtype for array in arrays):
        chosen = [i for i, array in enumerate(arrays) if array.dtype == dtype]
        ends = [
            sum(arrays[i].shape[-1] for i in chosen[: k + 1])
            for k in range(len(chosen))
        ]
        result = send(jnp.concatenate([arrays[i] for i in chosen], -1))
        sent |= dict(zip(chosen, jnp.split(result, ends[:-1], -1), strict=True))
    return [sent[i] for i in range(len(arrays))]
