"""Rows that lie on many devices, dealt out as coordinates while they are reduced.

Where a loss is that of a whole mesh, each device computes the rows of its own examples.
What looks at several rows at once wants all of them, of some coordinates: an all-to-all
of one layer's rows brings them there, and what is made of them stays cut as a parameter
is that is sharded along the same axes (FSDP). A mean sends as much, by reduce-scatter.
Of several rows on a device what merges travels instead, where it is less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from consensus_optax._gradients.claims import Claim
from consensus_optax._rows.explicit import names_of, size_of
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rows.statistics import Statistic, merge_lots
from consensus_optax._rows.verbs import Leaf
from consensus_optax._typing import Array

# Of rows, of what is like one of them, and of what is told besides.
Read = Callable[[Any, Any, Any], tuple[Any, Any]]


class Lies(NamedTuple):
    """How rows of one leaf lie, (B, ...), or of one layer's part of it.

    Attributes:
      place: which axis is dealt out, 0 for none.
      others: for every axis of a row the mesh axes that cut it beside the rows' own.
    """

    place: int
    others: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All of those mesh axes."""
        return tuple(name for names in self.others for name in names)

    def own(self, axes: tuple[str, ...]) -> PartitionSpec:
        """Of rows, each on its own device."""
        return PartitionSpec(axes, *(names or None for names in self.others))

    def cut(self, axes: tuple[str, ...]) -> PartitionSpec:
        """Of what is like one row, where coordinates have been dealt out."""
        entries = list(self.others)
        entries[self.place - 1] = (*entries[self.place - 1], *axes)
        return PartitionSpec(*(names or None for names in entries))

    def of_all(self, axes: tuple[str, ...]) -> PartitionSpec:
        """Of all rows there."""
        return PartitionSpec(None, *self.cut(axes))


class Dealing(NamedTuple):
    """Where rows lie, under ``jit``, on axes that are automatic, if only meanwhile.

    Attributes:
      mesh: the mesh.
      axes: its axes that cut the rows.
      wire: the dtype in which rows travel if that is narrower than theirs, or None.
      specs: how parameters are cut, one with an entry for every axis for each leaf.
    """

    mesh: Any
    axes: tuple[str, ...]
    wire: Any
    specs: Sequence[PartitionSpec]

    def of_coordinates(
        self, read: Read, rows: Any, claim: Claim, told: Any
    ) -> tuple[Any, Any]:
        """``read(rows, like, told)`` of each device's coordinates.

        Args:
          read: of all rows and of arrays like one row, to what adds up over coordinates
            and what is like one row again.
          rows: (B, ...), each on its own device.
          claim: on them.
          told: arrays that all devices have. Those that a function just refers to
            would lie on the mesh as it is outside, where JAX refuses some operations.
        """
        lies = self._lies(rows.shape, claim)
        if not lies.place:
            return read(rows, claim.like, told)
        dealt = lambda rows, *given: read(self._exchanged(rows, lies.place), *given)
        on_devices = self._on_devices(dealt, lies.own(self.axes), lies)
        return on_devices(self._narrow(rows), claim.like, told)

    def of_each_row(
        self,
        function: Callable[..., Any],
        rows: Array,
        per_row: tuple[Array, ...],
        claim: Claim,
    ) -> Any:
        """``function(rows, *per_row)``: (B,), of each row by itself, on its device.

        What adds up over coordinates; of rows nothing travels.
        """
        lies = self._lies(rows.shape, claim)
        if not lies.names or rows.shape[0] % self._size:
            return function(rows, *per_row)
        total = lambda *given: lax.psum(function(*given), lies.names)
        own = PartitionSpec(self.axes)
        specs = (lies.own(self.axes), *[own] * len(per_row))
        return self._mapped(total, specs, own, lies)(rows, *per_row)

    def merged(
        self,
        observe: Callable[..., tuple[Any, ...]],
        statistics: Sequence[Statistic],
        rows: Array,
        per_row: tuple[Array, Any],
        claim: Claim,
    ) -> tuple[Any, ...]:
        """Statistics of all rows: of rows dealt out, or each device's own, merged.

        Whichever is less to send.

        Args:
          observe: of rows and what is given for them to each statistic.
          statistics: how they merge.
          rows: (B, ...), each on its own device.
          per_row: weights, (B,), and what else is given, a tree of such.
          claim: on the rows.
        """
        lies = self._lies(rows.shape, claim)
        place = lies.place
        together = jax.eval_shape(observe, rows, *per_row)
        own = jax.eval_shape(self._narrow, rows)
        if not place or _bytes(own) // self._size < _bytes(together):
            read = lambda rows, like, per_row: ((), observe(rows, *per_row))
            return self.of_coordinates(read, rows, claim, per_row)[1]

        def on_device(rows: Array, weights: Array, given: Any) -> tuple[Any, ...]:
            here = jnp.any(weights > 0)
            present = lax.all_gather(here, self.axes)
            send = lambda seen: self._exchanged(seen[None], place)

            def merged(statistic: Statistic, seen: Any) -> Any:
                if statistic.merge is jnp.add:  # as the plain step sends its gradient
                    seen = jnp.where(here, seen, 0)
                    to = {"scatter_dimension": place - 1, "tiled": True}
                    return lax.psum_scatter(seen, self.axes, **to)
                return merge_lots(statistic.merge, jax.tree.map(send, seen), present)

            return tuple(map(merged, statistics, observe(rows, weights, given)))

        own = PartitionSpec(self.axes)
        specs = lies.own(self.axes), own, own
        on_mesh = self._mapped(on_device, specs, lies.cut(self.axes), lies)
        return on_mesh(rows, *per_row)

    def dealt(self, rows: Array, claim: Claim) -> Array:
        """Rows, each on its own device, to each device's coordinates of all of them."""
        lies = self._lies(rows.shape, claim)
        if not lies.place:
            return rows
        deal = lambda rows: self._exchanged(rows, lies.place)
        specs = lies.own(self.axes), lies.of_all(self.axes)
        return self._mapped(deal, *specs, lies)(self._narrow(rows))

    def of_dealt(
        self, read: Read, rows: Any, claim: Claim, told: Any
    ) -> tuple[Any, Any]:
        """The same as :meth:`of_coordinates` of rows that have been dealt out."""
        lies = self._lies(rows.shape, claim)
        if not lies.place:
            return read(rows, claim.like, told)
        on_devices = self._on_devices(read, lies.of_all(self.axes), lies)
        return on_devices(rows, claim.like, told)

    def _on_devices(self, read: Read, rows_spec: Any, lies: Lies) -> Read:
        """``read`` where each device has a part of the parameter."""

        def on_device(rows: Array, like: Any, told: Any) -> tuple[Any, Any]:
            sums, likes = read(rows, like, told)
            return lax.psum(sums, (*self.axes, *lies.names)), likes

        cut, whole = lies.cut(self.axes), PartitionSpec()
        return self._mapped(on_device, (rows_spec, cut, whole), (whole, cut), lies)

    def _mapped(self, function: Any, in_specs: Any, out_specs: Any, lies: Lies) -> Any:
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names={*self.axes, *lies.names},
        )

    def _exchanged(self, rows: Array, place: int) -> Array:
        return lax.all_to_all(rows, self.axes, place, 0, tiled=True)

    def rounded(self, rows: Leaf) -> Any:
        """Rows as they arrive: what is decided about them is decided about these."""
        if is_outer_product(rows):
            return rows  # which does not travel as rows do
        return self._narrow(rows).astype(rows.dtype)

    def _narrow(self, rows: Array) -> Array:
        """Rows as they travel."""
        narrows = self.wire is not None and self.wire.itemsize < rows.dtype.itemsize
        return rows.astype(self.wire) if narrows else rows

    @property
    def _size(self) -> int:
        """How many devices."""
        return size_of(self.axes, self.mesh)

    def _lies(self, shape: tuple[int, ...], claim: Claim) -> Lies:
        """How the rows of a claim lie, and which axis is dealt out.

        As the parameter is cut, else any; none if none can be. An update that lies
        otherwise than its parameter has to be sent once more.
        """
        kinds = dict(zip(self.mesh.axis_names, self.mesh.axis_types, strict=True))
        of_axis = lambda axis: names_of(self.specs[claim.leaf][axis])
        size = lambda names: size_of(names, self.mesh)
        others: list[tuple[str, ...]] = [()] * (len(shape) - 1)
        for i, axis in enumerate(claim.order):
            names = tuple(name for name in of_axis(axis) if name not in self.axes)
            free = all(kinds.get(name) == AxisType.Auto for name in names)
            if free and shape[1 + i] % size(names) == 0:
                others[i] = names
        count = lambda i: size((*others[i], *self.axes))
        none = shape[0] % self._size or 0 in shape  # rows, or entries
        fits = [
            1 + i
            for i, side in enumerate(shape[1:])
            if not none and not side % count(i)
        ]
        is_cut = lambda i: of_axis(claim.order[i]) == (*others[i], *self.axes)
        alike = [1 + i for i in range(len(claim.order)) if is_cut(i)]
        place = next((place for place in (*alike, *fits) if place in fits), 0)
        return Lies(place, tuple(others))


def _bytes(arrays: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
