"""The face of a reducer on a mesh, for optax and for engines that compute rows."""

from __future__ import annotations

from consensus_optax._rules.kinds import Rule
from consensus_optax._running.reducer import Aggregator
from consensus_optax._running.run import floating_leaves
from consensus_optax._typing import Array
from consensus_optax.engines.backward.source import Backward
from consensus_optax.engines.mesh.exchange import Exchange
from consensus_optax.engines.mesh.source import Shared
from consensus_optax.engines.mesh.specs import is_inside, specs_of, spread_of
from consensus_optax.engines.mesh.wire import Wire
from consensus_optax.engines.microbatches.source import Computed


class Sharded(Aggregator):
    """A reducer on a mesh, as `sharded` makes it, for engines that compute rows.

    Attributes:
      rule: the reducer's.
      axes: mesh axes that rows are sharded along.
      plain: whether parameters are whole and rows travel as they are.
    """

    rule: Rule
    axes: tuple[str, ...]
    plain: bool

    def of_all_rows(self, own: Array) -> Array:
        """What there is for every row, (L,) on a device, of all rows."""
        inside = is_inside(self.axes)
        return Exchange(self.axes, []).collect_rows(own) if inside else own

    @property
    def computes(self) -> bool:
        """Whether, where this is asked, `source` is to be had."""
        return self.plain and is_inside(self.axes)

    def source(self, local: Computed | Backward) -> Shared:
        """The rows of all devices, that each computes when they are looked at.

        Raises:
          ValueError: when traced, where that is not to be had.
        """
        if not self.computes:
            raise ValueError(
                "A sharded reducer takes microbatches, and rows that are not held, "
                f"inside of a `jax.shard_map` over its axes {self.axes} alone, and "
                "without `param_specs`, `wire` and `wire_dtype`. Leave "
                "`microbatch_size` and `hold_rows` out, or these."
            )
        params = local.params
        leaves = floating_leaves(params)
        pairs = zip(leaves, specs_of(params, None), strict=True)
        exchange = Exchange(self.axes, [spread_of(x.shape, spec) for x, spec in pairs])
        dtypes = [leaf.dtype for leaf in leaves]
        return Shared.of(exchange, local, dtypes, ("values",), Wire())
