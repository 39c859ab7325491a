"""Rows that lie on many devices, dealt out as coordinates while they are reduced.

Where a loss is that of a whole mesh, each device computes the rows of its own examples.
What looks at several rows at once wants all of them, of some coordinates: an all-to-all
of one layer's rows brings them there, and what is made of them stays cut as a parameter
is that is sharded along the same axes (FSDP). A mean sends as much, by reduce-scatter.
Of several rows on a device what merges travels instead, where it is less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from consensus_optax._gradients.claims import Claim
from consensus_optax._rows.explicit import names_of
from consensus_optax._rows.statistics import Statistic, merge_lots
from consensus_optax._typing import Array


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
        if not place:
            return read(rows, claim.like)
        dealt = lambda rows, like: read(self._exchanged(rows, place), like)
        rows_spec = PartitionSpec(self.axes)
        return self._on_devices(dealt, rows_spec, place)(self._narrow(rows), claim.like)

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
        if not place or _bytes(own) // self._size < _bytes(together):
            read = lambda rows, like: ((), observe(rows, *per_row))
            return self.of_coordinates(read, rows, claim)[1]

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
        on_mesh = self._mapped(on_device, (own, own, own), self._cut(place))
        return on_mesh(rows, *per_row)

    def dealt(self, rows: Array, claim: Claim) -> Array:
        """Rows, each on its own device, to each device's coordinates of all of them."""
        place = self._place(rows.shape, claim)
        if not place:
            return rows
        deal = lambda rows: self._exchanged(rows, place)
        specs = PartitionSpec(self.axes), self._cut(place + 1)
        return self._mapped(deal, *specs)(self._narrow(rows))

    def of_dealt(
        self, read: Callable[[Array, Any], tuple[Any, Any]], rows: Any, claim: Claim
    ) -> tuple[Any, Any]:
        """The same as :meth:`of_coordinates` of rows that have been dealt out."""
        place = self._place(rows.shape, claim)
        if not place:
            return read(rows, claim.like)
        return self._on_devices(read, self._cut(place + 1), place)(rows, claim.like)

    def _on_devices(
        self, read: Callable[[Any, Any], tuple[Any, Any]], rows_spec: Any, place: int
    ) -> Callable[[Any, Any], tuple[Any, Any]]:
        """``read`` where each device has a part of the parameter."""

        def on_device(rows: Array, like: Any) -> tuple[Any, Any]:
            sums, likes = read(rows, like)
            return lax.psum(sums, self.axes), likes

        cut = self._cut(place)
        return self._mapped(on_device, (rows_spec, cut), (PartitionSpec(), cut))

    def _mapped(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(self.axes),
        )

    def _exchanged(self, rows: Array, place: int) -> Array:
        return lax.all_to_all(rows, self.axes, place, 0, tiled=True)

    def _cut(self, place: int) -> PartitionSpec:
        """Of an array whose axis ``place``, counted from 1, is dealt out."""
        return PartitionSpec(*[None] * (place - 1), self.axes)

    def _narrow(self, rows: Array) -> Array:
        """Rows as they travel."""
        narrows = self.wire is not None and self.wire.itemsize < rows.dtype.itemsize
        return rows.astype(self.wire) if narrows else rows

    @property
    def _size(self) -> int:
        """How many devices."""
        return math.prod(self.mesh.shape[name] for name in self.axes)

    def _place(self, shape: tuple[int, ...], claim: Claim) -> int:
        """Which axis is dealt out: as the parameter is cut, else any; 0 if none can be.

        An update that lies otherwise than its parameter has to be sent once more.
        """
        size = self._size
        fits = [place for place, side in enumerate(shape) if side % size == 0]
        if 0 not in fits:  # few rows
            return 0
        is_cut = lambda axis: names_of(self.specs[claim.leaf][axis]) == self.axes
        alike = [1 + i for i, axis in enumerate(claim.order) if is_cut(axis)]
        return next((place for place in (*alike, *fits[1:]) if place in fits), 0)


def _bytes(arrays: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
