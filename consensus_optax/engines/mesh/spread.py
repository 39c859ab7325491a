"""How parameters lie on a mesh, and which part of them a device has."""

from __future__ import annotations

import math
from typing import NamedTuple

from jax import lax

from consensus_optax._typing import Array
from consensus_optax.engines.mesh.layout import Layout, Stay


class Spread(NamedTuple):
    """How one parameter lies on the mesh axes that parameters are cut along.

    Attributes:
      shape: of the part that a device has.
      axes: for every axis of the array the mesh axes that it is cut along, often none.
      layout: of the blocks of that part which are dealt out along the rows' axes.
      stays: where, if the parameter is cut along these too, or None: blocks are then
        slabs of it, or pieces of slabs, and the update's are left where they are.
    """

    shape: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]
    layout: Layout
    stays: Stay | None = None

    @property
    def mesh_axes(self) -> tuple[str, ...]:
        """All mesh axes that the parameter is cut along."""
        return tuple(name for names in self.axes for name in names)

    @property
    def whole(self) -> tuple[int, ...]:
        """Shape of the whole parameter."""
        count = lambda names: math.prod(lax.axis_size(name) for name in names)
        pairs = zip(self.shape, self.axes, strict=True)
        return tuple(size * count(names) for size, names in pairs)

    def slab(self, part: Array) -> Array:
        """This device's slab of the part, or of a slab, if the parameter stays."""
        if self.stays is None or part.shape != self.shape:
            return part
        size = self.shape[self.stays.axis] // lax.axis_size(self.stays.names)
        start = lax.axis_index(self.stays.names) * size
        return lax.dynamic_slice_in_dim(part, start, size, self.stays.axis)

    def unslabbed(self, slab: Array) -> Array:
        """The inverse."""
        if self.stays is None:
            return slab
        return _gathered(slab, self.stays.names, self.stays.axis)

    def settled(self, block: Array, stays: Stay) -> Array:
        """This device's slab of the block that it has of a parameter that stays."""
        before, after = self.shape[: stays.axis], self.shape[stays.axis + 1 :]
        piece = block.reshape(*before, -1, *after)
        return _gathered(piece, stays.others, stays.axis) if stays.others else piece

    def summed(self, own: Array, stays: Stay) -> Array:
        """What each device has for the parameter, summed: the slab alone."""
        slab = lax.psum_scatter(
            own, stays.names, scatter_dimension=stays.axis, tiled=True
        )
        return lax.psum(slab, stays.others) if stays.others else slab

    def total(self, own: Array) -> Array:
        """The sum over slabs of what there is for each."""
        return own if self.stays is None else lax.psum(own, self.stays.names)

    def part(self, whole: Array) -> Array:
        """The part that this device has of an array like the whole parameter."""
        for axis, names in enumerate(self.axes):
            if names:
                start = lax.axis_index(names) * self.shape[axis]
                whole = lax.dynamic_slice_in_dim(whole, start, self.shape[axis], axis)
        return whole


def _gathered(array: Array, names: tuple[str, ...], axis: int) -> Array:
    return lax.all_gather(array, names, axis=axis, tiled=True, to="invarying")
