"""How the coordinates of an array are cut into equal parts, one for every device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from consensus_optax._rows.slabs import Run
from consensus_optax._typing import Array


class Layout(NamedTuple):
    """An array seen as (outer, length, inner), cut along its middle axis into parts.

    All of P coordinates one after the other are (1, P, 1); an (M, N) matrix whose
    columns are dealt out is (M, N, 1), one whose lines are (1, M, N). Parts of N
    devices are equally long, the last ones filled up with zeros; each is one axis.

    Attributes:
      sides: outer, length and inner.
      view: the array to one with these entries in this order.
      restore: the inverse, from any shape with these entries.
    """

    sides: tuple[int, int, int]
    view: Callable[[Array], Array]
    restore: Callable[[Array], Array]

    def parts(self, array: Array, count: int) -> Array:
        """All parts, (count, width)."""
        outer, length, inner = self.sides
        each = -(-length // count)
        seen = self.view(array).reshape(self.sides)
        if length < count * each:
            seen = jnp.pad(seen, ((0, 0), (0, count * each - length), (0, 0)))
        apart = seen.reshape(outer, count, each, inner).swapaxes(0, 1)
        return apart.reshape(count, outer * each * inner)

    def joined(self, parts: Array) -> Array:
        """The inverse."""
        outer, length, inner = self.sides
        count, each = parts.shape[0], -(-length // parts.shape[0])
        apart = parts.reshape(count, outer, each, inner).swapaxes(0, 1)
        whole = apart.reshape(outer, count * each, inner)
        return self.restore(whole[:, :length])

    def unpadded(self, part: Array, device: Array, count: int) -> Array:
        """The part of one device with zeros where it is filled up."""
        outer, length, inner = self.sides
        each = -(-length // count)
        there = device * each + jnp.arange(each, dtype=jnp.int32) < length
        seen = part.reshape(outer, each, inner)
        return jnp.where(there[None, :, None], seen, 0).reshape(part.shape)


class Stay(NamedTuple):
    """Where the update of a parameter stays that is cut along axes of the rows.

    Attributes:
      axis: of the parameter.
      names: mesh axes of the rows that cut it, as its spec has them.
      order: these, and then the rows' other axes, along which the devices of a slab
        have a piece of it each.
      axes: all of them, as the rows have them.
    """

    axis: int
    names: tuple[str, ...]
    order: tuple[str, ...]
    axes: tuple[str, ...]

    @property
    def others(self) -> tuple[str, ...]:
        """The rows' other axes."""
        return self.order[len(self.names) :]

    def layout(self, run: Run, restore: Callable[[Array], Array]) -> Layout:
        """Slabs, and their pieces, of a run of an array's entries."""
        outer, length, inner = run
        if self.order == self.axes:
            return Layout(run, lambda array: array, restore)
        places = [1 + self.order.index(name) for name in self.axes]
        turned = (0, *places, len(places) + 1)
        back = sorted(range(len(turned)), key=turned.__getitem__)
        sizes = lambda names: [lax.axis_size(name) for name in names]
        lines = length // math.prod(sizes(self.axes)) * inner

        def view(array: Array) -> Array:
            return array.reshape(outer, *sizes(self.order), lines).transpose(turned)

        def whole(array: Array) -> Array:
            apart = array.reshape(outer, *sizes(self.axes), lines)
            return restore(apart.transpose(back))

        return Layout(run, view, whole)


def flat_layout(shape: tuple[int, ...]) -> Layout:
    """All coordinates of an array one after the other."""
    restore = lambda whole: whole.reshape(shape)
    return Layout((1, math.prod(shape), 1), lambda array: array, restore)
