"""How parameters lie on a mesh, and which part of them a device has."""

from __future__ import annotations

import math
from typing import NamedTuple

from jax import lax

from consensus_optax._typing import Array, AxisName
from consensus_optax.engines.mesh.layout import Layout


class Spread(NamedTuple):
    """How one parameter lies on the mesh axes that parameters are cut along.

    Attributes:
      shape: of the part that a device has.
      axes: for every axis of the array the mesh axes that it is cut along, often none.
      layout: of the blocks of that part which are dealt out along the rows' axes.
      stays: along which axis the parameter is cut along these too, or None: blocks are
        then slabs of it, and the update's are left where they are.
    """

    shape: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]
    layout: Layout
    stays: int | None = None

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

    def slab(self, part: Array, axis_name: AxisName) -> Array:
        """This device's slab of the part, or of a slab, if the parameter stays."""
        if self.stays is None or part.shape != self.shape:
            return part
        size = self.shape[self.stays] // lax.axis_size(axis_name)
        start = lax.axis_index(axis_name) * size
        return lax.dynamic_slice_in_dim(part, start, size, self.stays)

    def part(self, whole: Array) -> Array:
        """The part that this device has of an array like the whole parameter."""
        for axis, names in enumerate(self.axes):
            if names:
                start = lax.axis_index(names) * self.shape[axis]
                whole = lax.dynamic_slice_in_dim(whole, start, self.shape[axis], axis)
        return whole
