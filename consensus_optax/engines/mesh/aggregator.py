"""The face of a reducer on a mesh, for optax and for engines that compute rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from consensus_optax._rows.trees import floating_leaves
from consensus_optax._rules.kinds import Rule
from consensus_optax._running.reducer import Aggregator
from consensus_optax._running.run import map_previous
from consensus_optax._typing import Array
from consensus_optax.engines.backward.dealing import Dealing
from consensus_optax.engines.backward.passes import Batch
from consensus_optax.engines.backward.source import Backward
from consensus_optax.engines.mesh.exchange import Exchange
from consensus_optax.engines.mesh.source import Shared
from consensus_optax.engines.mesh.specs import (
    automatic_mesh,
    is_inside,
    place,
    specs_of,
    spread_of,
)
from consensus_optax.engines.mesh.wire import Wire
from consensus_optax.engines.microbatches.source import Computed


class Sharded(Aggregator):
    """A reducer on a mesh, as `sharded` makes it, for engines that compute rows.

    Attributes:
      rule: the reducer's.
      axes: mesh axes that rows are sharded along.
      plain: whether parameters are whole and rows travel as they are.
      mesh: the mesh outside of ``shard_map``, None for that of the context.
      wire: how rows and update travel.
      param_specs: how parameters are cut, None if that is not told.
      per_row: which keyword arguments of ``update`` have one entry for every row.
    """

    rule: Rule
    axes: tuple[str, ...]
    plain: bool
    mesh: Any
    wire: Wire
    param_specs: Any
    per_row: tuple[str, ...]

    @property
    def inside(self) -> bool:
        """Whether this is asked inside of a ``shard_map`` over the axes."""
        return is_inside(self.axes)

    def of_all_rows(self, own: Array) -> Array:
        """What there is for every row, (L,) on a device, of all rows."""
        return Exchange(self.axes, []).collect_rows(own) if self.inside else own

    @property
    def computes(self) -> bool:
        """Whether rows may be computed when they are looked at, where this is asked."""
        coded = self.wire.rows is not None or self.wire.update is not None
        return self.plain or not (self.inside or coded)

    @property
    def deals(self) -> bool:
        """Whether rows may be dealt out in the backward pass, where this is asked."""
        return not self.inside and self.wire.rows is None and self.wire.update is None

    def specs(self, params: Any) -> list[PartitionSpec]:
        """How parameters are cut, as told, or as explicit axes say."""
        return specs_of(params, self.param_specs)

    def laid(
        self, update: list[Array], state: Any, specs: Sequence[PartitionSpec]
    ) -> tuple[list[Array], Any]:
        """An update, and what is kept like it, as parameters lie."""
        if not self.deals:
            return update, state
        mesh = automatic_mesh(self.mesh, self.axes)
        lie = lambda leaves: place(leaves, list(specs), mesh)
        kept = map_previous(lie, self.rule, state.rule_state)
        return lie(update), state._replace(rule_state=kept)

    def source(
        self, local: Computed | Backward, specs: Sequence[PartitionSpec]
    ) -> Shared | Backward:
        """The rows of all devices, that are computed when they are looked at.

        Args:
          local: those of the device, or of all under ``jit``.
          specs: how parameters are cut.

        Raises:
          ValueError: when traced, where that is not to be had.
        """
        if isinstance(local, Backward) and self.deals:
            return local._replace(batch=self._dealt(local.batch, specs))
        if not (self.inside and self.plain):
            raise ValueError(
                "A sharded reducer takes microbatches, and rows that are not held, "
                "under `jax.jit` without `wire` and `update_wire`, and inside of "
                f"`jax.shard_map` over its axes {self.axes} alone without "
                "`param_specs`, `wire` and `wire_dtype`. Leave `microbatch_size` and "
                "`hold_rows` out, or these."
            )
        params = local.params
        leaves = floating_leaves(params)
        pairs = zip(leaves, specs_of(params, None), strict=True)
        exchange = Exchange(self.axes, [spread_of(x.shape, spec) for x, spec in pairs])
        dtypes = [leaf.dtype for leaf in leaves]
        given = local.seen.roster.extra
        named = {"values", *(name for name in self.per_row if name in given)}
        return Shared.of(exchange, local, dtypes, tuple(sorted(named)), Wire())

    def _dealt(self, batch: Batch, specs: Sequence[PartitionSpec]) -> Batch:
        """Rows that the compiler is told to leave where their examples are."""
        wire = self.wire.dtype
        if wire is not None and not jnp.issubdtype(wire, jnp.floating):
            wire = None  # of signs, which rows are not
        dealing = Dealing(automatic_mesh(self.mesh, self.axes), self.axes, wire, specs)
        arranged = batch.arranged
        rows_axis = arranged.rows_axis
        names = rows_axis.names or self.axes
        arranged = arranged._replace(rows_axis=rows_axis._replace(names=names))
        return batch._replace(arranged=arranged, dealing=dealing)
