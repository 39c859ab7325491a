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
from jax.sharding import PartitionSpec

from consensus_optax._gradients.claims import Claim
from consensus_optax._rows.explicit import names_of, size_of
from consensus_optax._rows.statistics import Statistic, merge_lots
from consensus_optax._typing import Array


class Dealing(NamedTuple):
    """Where rows lie, under ``jit``, on automatic axes.

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
        self, read: Callable[[Array, Any], tuple[Any, Any]], rows: Any, claim: Claim
    ) -> tuple[Any, Any]:
        """``read(rows, like)`` of each device's coordinates.

        Args:
          read: of all rows and of arrays like one row, to what adds up over coordinates
            and what is like one row again.
          rows: (B, ...), each on its own device.
          claim: on them.
        """
        place = self._place(rows.shape, claim)
        if not place.axis:
            return read(rows, claim.like)
        dealt = lambda rows, like: read(self._exchanged(rows, place), like)
        made = self._on_devices(dealt, place.made, place)
        return made(self._narrow(rows), claim.like)

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
        place = self._place(rows.shape, claim)
        together = jax.eval_shape(observe, rows, *per_row)
        own = jax.eval_shape(self._narrow, rows)
        if not place.axis or _bytes(own) // self._size < _bytes(together):
            read = lambda rows, like: ((), observe(rows, *per_row))
            return self.of_coordinates(read, rows, claim)[1]

        def on_device(rows: Array, weights: Array, given: Any) -> tuple[Any, ...]:
            here = jnp.any(weights > 0)
            present = lax.all_gather(here, self.axes)
            send = lambda seen: self._exchanged(seen[None], place)

            def merged(statistic: Statistic, seen: Any) -> Any:
                if statistic.merge is jnp.add:  # as the plain step sends its gradient
                    seen = jnp.where(here, seen, 0)
                    to = {"scatter_dimension": place.axis - 1, "tiled": True}
                    return lax.psum_scatter(seen, self.axes, **to)
                return merge_lots(statistic.merge, jax.tree.map(send, seen), present)

            return tuple(map(merged, statistics, observe(rows, weights, given)))

        own = PartitionSpec(self.axes)
        on_mesh = self._mapped(on_device, (place.made, own, own), place.like, place)
        return on_mesh(rows, *per_row)

    def dealt(self, rows: Array, claim: Claim) -> Array:
        """Rows, each on its own device, to each device's coordinates of all of them."""
        place = self._place(rows.shape, claim)
        if not place.axis:
            return rows
        deal = lambda rows: self._exchanged(rows, place)
        return self._mapped(deal, place.made, place.dealt, place)(self._narrow(rows))

    def of_dealt(
        self, read: Callable[[Array, Any], tuple[Any, Any]], rows: Any, claim: Claim
    ) -> tuple[Any, Any]:
        """The same as :meth:`of_coordinates` of rows that have been dealt out."""
        place = self._place(rows.shape, claim)
        if not place.axis:
            return read(rows, claim.like)
        return self._on_devices(read, place.dealt, place)(rows, claim.like)

    def _on_devices(
        self, read: Callable[[Any, Any], tuple[Any, Any]], rows_spec: Any, place: _Place
    ) -> Callable[[Any, Any], tuple[Any, Any]]:
        """``read`` where each device has a part of the parameter."""

        def on_device(rows: Array, like: Any) -> tuple[Any, Any]:
            sums, likes = read(rows, like)
            return lax.psum(sums, (*self.axes, *place.names)), likes

        specs = (rows_spec, place.like), (PartitionSpec(), place.like)
        return self._mapped(on_device, *specs, place)

    def _mapped(
        self, function: Any, in_specs: Any, out_specs: Any, place: _Place
    ) -> Any:
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names={*self.axes, *place.names},
        )

    def _exchanged(self, rows: Array, place: _Place) -> Array:
        return lax.all_to_all(rows, self.axes, place.axis, 0, tiled=True)

    def _narrow(self, rows: Array) -> Array:
        """Rows as they travel."""
        narrows = self.wire is not None and self.wire.itemsize < rows.dtype.itemsize
        return rows.astype(self.wire) if narrows else rows

    @property
    def _size(self) -> int:
        """How many devices."""
        return size_of(self.axes, self.mesh)

    def _place(self, shape: tuple[int, ...], claim: Claim) -> _Place:
        """Where rows are dealt out: as the parameter is cut, else anywhere.

        An update that lies otherwise than its parameter has to be sent once more.
        """
        known = self.specs[claim.leaf] if len(claim.order) + 1 == len(shape) else ()
        cuts = [names_of(known[axis]) for axis in claim.order] if known else []
        cuts = cuts or [()] * (len(shape) - 1)
        others = [tuple(name for name in own if name not in self.axes) for own in cuts]
        count = self._size
        sides = [
            side // size_of(names, self.mesh)
            for side, names in zip(shape[1:], others, strict=True)
        ]
        fits = [i for i, side in enumerate(sides) if side % count == 0]
        if shape[0] % count or not fits:  # few rows
            return _Place(0, self.axes, others)
        alike = [i for i in fits if cuts[i] == (*others[i], *self.axes)]
        return _Place(1 + (alike or fits)[0], self.axes, others)


class _Place(NamedTuple):
    """Where rows are dealt out.

    Attributes:
      axis: of arrays (B, ...), which is cut for it; 0 if none can be.
      axes: mesh axes of the rows.
      others: of a row's every axis, other mesh axes that cut it already.
    """

    axis: int
    axes: tuple[str, ...]
    others: Sequence[tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """All other mesh axes that cut a row."""
        return tuple(name for names in self.others for name in names)

    @property
    def made(self) -> PartitionSpec:
        """How rows lie on the devices that make them."""
        return PartitionSpec(self.axes, *(names or None for names in self.others))

    @property
    def dealt(self) -> PartitionSpec:
        """How they lie afterwards."""
        return PartitionSpec(None, *self.like)

    @property
    def like(self) -> PartitionSpec:
        """How what is like one row does."""
        cuts = list(self.others)
        cuts[self.axis - 1] = *cuts[self.axis - 1], *self.axes
        return PartitionSpec(*(names or None for names in cuts))


def _bytes(arrays: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
