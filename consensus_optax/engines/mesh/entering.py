"""How rows enter a ``shard_map``: cut along their own axis, and as parameters are."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import PartitionSpec

from consensus_optax._rows.addition import one_product
from consensus_optax._rows.explicit import names_of, size_of
from consensus_optax._rows.outer_product import OuterProduct, is_outer_product
from consensus_optax._rows.slabs import Slab, slab_of
from consensus_optax._rows.verbs import Leaf


class Entering(NamedTuple):
    """Rows of one leaf.

    Attributes:
      given: what enters: an array, a leaf, or the two factors of one.
      specs: how it is cut, which may be a prefix.
      part: all rows of the part of the parameter that a device has; shapes alone where
        that is not what is given.
      lines: the slab that a device has of a table of which all indices enter, and the
        mesh axes that cut it; None of others.
    """

    given: Any
    specs: Any
    part: Any
    lines: tuple[Slab, tuple[str, ...]] | None = None

    def inside(self, own: Any) -> Leaf:
        """The device's rows, of what it has of what is given."""
        if not isinstance(own, tuple):
            return own
        left, right = own
        if self.lines is not None:
            slab, names = self.lines
            left = slab.lines(left, lax.axis_index(names), lax.axis_size(names))
        return dataclasses.replace(self.part, left=left, right=right)


def entering(
    leaf: Leaf, axes: tuple[str, ...], spec: PartitionSpec, mesh: Any
) -> Entering:
    """Rows cut along ``axes``, of a parameter that others cut as the spec says.

    Products stay such where each cut is one of a factor.
    """
    cut = {i: names_of(entry) for i, entry in enumerate(spec) if entry is not None}
    if is_outer_product(leaf) and not cut:
        return Entering(leaf, PartitionSpec(axes), leaf)
    one = one_product(leaf) if is_outer_product(leaf) else None
    if one is not None:
        found = _of_factors(one, axes, cut, mesh)
        if found is not None:
            return found
    array = leaf.materialize() if is_outer_product(leaf) else leaf
    sides = list(array.shape)
    for axis, names in cut.items():
        sides[1 + axis] //= size_of(names, mesh)
    part = jax.ShapeDtypeStruct(tuple(sides), array.dtype)
    return Entering(array, PartitionSpec(axes, *spec), part)


def _of_factors(
    leaf: OuterProduct, axes: tuple[str, ...], cut: dict[int, Any], mesh: Any
) -> Entering | None:
    """The same of products; None if a part is not one of whole runs of a factor."""
    given = leaf.factors
    part = dataclasses.replace(leaf, left=given[0], right=given[1], spec=())
    along: dict[str, tuple[str, ...]] = {}
    lines: tuple[Slab, tuple[str, ...]] | None = None
    for axis, names in cut.items():
        count = size_of(names, mesh)
        slab = slab_of(part, axis, count)
        if slab is not None and slab.side == "left" and leaf.is_look_up and not lines:
            lines = slab, names
            part = slab.of(part, part.left, part.right)
            continue
        if slab is None or slab.run[0] != 1 or slab.side in along:
            return None
        along[slab.side] = names
        factors: dict[str, Any] = {"left": part.left, "right": part.right}
        *others, length = factors[slab.side].shape
        shape, dtype = (*others, length // count), factors[slab.side].dtype
        factors[slab.side] = jax.ShapeDtypeStruct(shape, dtype)
        part = slab.of(part, factors["left"], factors["right"])
    specs = tuple(
        PartitionSpec(axes, *[None] * (factor.ndim - 2), along.get(side))
        for side, factor in zip(("left", "right"), given, strict=True)
    )
    return Entering(given, specs, part, lines)
