"""A source whose rows are spread over devices: what travels, and who sums.

Most rules look at all rows of a coordinate or at inner products, which are sums over
coordinates: rows are exchanged for coordinates once, and each device goes on with its
part of all rows. What needs less sends less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax._rows.statistics import merge_lots
from consensus_optax._rows.verbs import Leaf, Mixed
from consensus_optax._rules.coordinates import Coordinates
from consensus_optax._rules.kinds import Columns, Fold, Reads, Scaling
from consensus_optax._running.memory import Memory
from consensus_optax._running.source import (
    Asked,
    Combined,
    Look,
    Seen,
    Source,
    rescaled,
)
from consensus_optax._typing import Array
from consensus_optax.engines.backward.source import Backward
from consensus_optax.engines.mesh.costs import combination_is_less, statistics_are_less
from consensus_optax.engines.mesh.exchange import Exchange, narrowed
from consensus_optax.engines.mesh.factors import as_travelling
from consensus_optax.engines.mesh.wire import Wire
from consensus_optax.engines.microbatches.source import Computed

Local = Memory | Computed | Backward


class Shared(NamedTuple):
    """The rows of all devices, of which this one has a share.

    Attributes:
      exchange: with the other devices.
      local: a source of this device's rows, in memory or computed a few at a time.
      dtypes: in which updates travel, leaf by leaf, if the rule allows it.
      per_row: which extra arguments have one entry for every row.
      wire: how rows and update travel.
      seen: all rows; for rows that are computed, once they have been looked at.
    """

    exchange: Exchange
    local: Local
    dtypes: list[Any]
    per_row: tuple[str, ...]
    wire: Wire
    seen: Seen

    @classmethod
    def of(
        cls,
        exchange: Exchange,
        local: Local,
        dtypes: list[Any],
        per_row: tuple[str, ...],
        wire: Wire,
    ) -> Shared:
        """From the rows of each device."""
        seen = local.seen
        roster = seen.roster._replace(coordinates=exchange.of_rows())
        local = local._replace(seen=seen._replace(roster=roster))
        source = cls(exchange, local, dtypes, per_row, wire, local.seen)
        if not isinstance(local, Memory):
            return source
        return source._replace(seen=source._of_all(local.seen))

    def inner(self, asked: Asked) -> tuple[Any, Source]:
        """What is known of each row alone is collected; for pairs rows are dealt."""
        if asked.reads.pairs or not self._combines():
            return self._dealt().inner(asked)
        if asked.reads == Reads.NOTHING:
            return None, self._after(self.local.inner(asked)[1])
        if asked.reads == Reads.TOWARD:
            products, local = self.local.inner(asked)
            every = self.exchange.collect_rows(products)  # target's own from each
            apart = every.reshape(*every.shape[:-1], self.exchange.num_devices, -1)
            rows = apart[..., :-1].reshape(*every.shape[:-1], -1)
            every = jnp.concatenate([rows, apart[..., 0, -1:]], -1)
            return every, self._after(local)
        asked = asked._replace(previous=None)
        norms, local = self.local.inner(asked.begun(self.seen.roster.weights.dtype))
        source, of_all = self._after(local), self.exchange.collect_rows

        def look(asked: Asked) -> Array:
            scale = None if asked.scale is None else self._own(asked.scale)
            return of_all(local.inner(asked._replace(scale=scale))[0])

        norms, seen = rescaled(asked, of_all(norms), source.seen, look)
        return norms, source._replace(seen=seen)

    def combine(self, weights: Array, exact: bool = False) -> list[Array]:
        """Every device combines its rows; the sum of N such is a plain all-reduce.

        Or a reduce-scatter, of what stays in place. In float32; of narrower rows narrow
        numbers are sent, unless ``exact``.
        """
        combined = self.local.combine(self.exchange.own_rows(weights))
        return self._summed(combined, exact)

    def combine_on_trust(
        self, weigh: Callable[[Any], Array]
    ) -> tuple[list[Array], Source]:
        """Each device does; weights are those of all rows."""
        if isinstance(self.local, Memory):
            source = self if self._combines() else self._dealt()
            return source.combine(weigh(source)), source
        combined, local = self.local.combine_on_trust(
            lambda local: weigh(self._after(local)), self.exchange.own_rows
        )
        return self._summed(combined, False), self._after(local)

    def combine_apart(
        self, look: Look, exact: bool = False
    ) -> tuple[Combined, Shared] | None:
        """Each device does its own, if it can."""
        if not isinstance(self.local, Computed):
            return None
        of_all = self.exchange.collect_rows
        found, local = self.local.combine_apart(look, exact, of_all)
        update = self._summed(found.update, exact)
        products = jax.tree.map(of_all, found.products)
        source = self._after(local)
        seen = source.seen._replace(scale=of_all(jnp.asarray(local.seen.scale)))
        return Combined(update, products, found.total), source._replace(seen=seen)

    def _summed(self, combined: list[Array], exact: bool) -> list[Array]:
        """What each device's rows combine to, of all of them."""
        dtypes = self._row_dtypes(combined)
        wide = all(dtype.itemsize >= 4 for dtype in dtypes)
        if exact or (wide and self.wire.update is None):
            return self.exchange.summed(combined)
        pairs = zip(combined, dtypes, strict=True)
        dealt = self.exchange.deal([narrowed(x, dtype)[None] for x, dtype in pairs])
        pairs = zip(dealt, combined, strict=True)
        blocks = [block.astype(x.dtype).sum(0) for block, x in pairs]
        return self._of_blocks().whole(blocks, False)

    def statistics(self, rule: Fold) -> tuple[list[list[Array]], Source]:
        """Every device folds its rows; what travels is statistics, in float32."""
        if not self._folds(rule):
            return self._dealt(rule.reads_signs).statistics(rule)
        exchange = self.exchange
        own, local = self.local.statistics(rule._replace(matters=None))
        source = self._after(local)
        roster = source.seen.roster
        present = roster.present.reshape(exchange.num_devices, -1).any(1)  # (N,)
        by_leaf = list(zip(*own, strict=True))
        stacks = [jnp.stack(jax.tree.leaves(statistics)) for statistics in by_leaf]
        dealt: list[tuple[Any, ...]] = []
        for statistics, x in zip(by_leaf, exchange.deal(stacks), strict=True):
            structure = jax.tree.structure(statistics)
            apart = (exchange.num_devices, structure.num_leaves, x.shape[1])
            dealt.append(structure.unflatten(jnp.moveaxis(x.reshape(apart), 1, 0)))

        merged = lambda each, lots: merge_lots(each.merge, lots, present)
        by_statistic = zip(rule.statistics, zip(*dealt, strict=True), strict=True)
        found = [[merged(each, value) for value in leaf] for each, leaf in by_statistic]
        return found, source._replace(seen=source._in_blocks)

    def columns(self, rule: Columns) -> tuple[list[Array], Source]:
        """All rows of a coordinate are where it is dealt to."""
        return self._dealt().columns(rule)

    def among(self, weights: Array) -> Shared:
        """Nothing is computed; weights are those of all rows."""
        local = self.local.among(self.exchange.own_rows(weights))
        return self._replace(local=local, seen=self.seen.among(weights))

    def scaled(self, factors: Array, sound: Array, tested: bool) -> Shared:
        """Every device scales its own rows."""
        local = self.local.scaled(self._own(factors), self._own(sound), tested)
        seen = self.seen.without(sound)
        if isinstance(local, Memory) and not tested:
            seen = self._of_all(local.seen)
        return self._replace(local=local, seen=seen)

    def scaled_when_seen(self, step: Scaling) -> Shared | None:
        """Every device does its own, if it can."""
        if isinstance(self.local, Memory):
            return None
        local = self.local.scaled_when_seen(step)
        if local is None:
            return None
        return self._replace(
            local=local, seen=self.seen._replace(factors=local.seen.factors)
        )

    def mixed(self, matrix: Array, weights: Array) -> Source:
        """Rows are mixed where all of them are."""
        return self._dealt().mixed(matrix, weights)

    def _own(self, given: Array) -> Array:
        """What this device's rows have of what is given for each, or for all as one."""
        return self.exchange.own_rows(given) if given.ndim else given

    def _dealt(self, signs: bool = False) -> Memory:
        """All rows of this device's coordinates, leaf by leaf (B, width)."""
        exchange, local = self.exchange, self.local
        if not isinstance(local, Memory):
            blocks, local = local.multiplied_out(exchange.deal, signs)
            return Memory(blocks, self._after(local)._in_blocks)
        if self.wire.codes_rows:
            own = local.seen.roster
            leaves, there = local.leaves, own.present
            blocks = self.wire.deal(leaves, exchange, there, own.step)
            return Memory(blocks, self._in_blocks)
        count, dtype = exchange.num_devices, self.seen.roster.weights.dtype
        pairs = zip(local.leaves, exchange.spreads, strict=True)
        leaves = [as_travelling(x, count, signs, dtype, s.stays) for x, s in pairs]
        source = self._replace(exchange=exchange.laid_out(leaves))
        return Memory(exchange.deal_rows(leaves), source._in_blocks)

    @property
    def _in_blocks(self) -> Seen:
        """What is known of all rows, for who has some coordinates of them."""
        roster = self.seen.roster._replace(coordinates=self._of_blocks())
        return self.seen._replace(roster=roster)

    def _of_blocks(self) -> Coordinates:
        """Coordinates dealt out, whose updates travel as the wire says."""
        if self.wire.update is None:
            return self.exchange.of_blocks(self.dtypes)
        exchange, step = self.exchange, self.seen.roster.step
        collect = lambda blocks: self.wire.collect(blocks, exchange, step)
        return exchange.of_blocks(self.dtypes, collect)

    def _after(self, local: Local) -> Shared:
        """The same once the device's own rows have been looked at."""
        if local is self.local:
            return self
        return self._replace(local=local, seen=self._of_all(local.seen))

    def _of_all(self, own: Seen) -> Seen:
        """What is known of the rows of all devices."""
        exchange, roster = self.exchange, own.roster
        both = jnp.append(
            roster.weights, own.num_nonfinite.astype(roster.weights.dtype)
        )
        both = exchange.collect_rows(both)  # one collective for both
        both = both.reshape(exchange.num_devices, -1)
        weights, num_bad = both[:, :-1].reshape(-1), both[:, -1].sum()
        of_all = lambda tree: jax.tree.map(lambda x: exchange.collect_rows(x.T).T, tree)
        extra = {
            name: of_all(given) if name in self.per_row else given
            for name, given in roster.extra.items()
        }
        coordinates = exchange.of_combined()
        roster = roster._replace(weights=weights, extra=extra, coordinates=coordinates)
        factors = of_all(own.factors)  # of None there is nothing to collect
        return Seen(roster, num_bad.astype(jnp.int32), own.value, factors=factors)

    def _combines(self) -> bool:
        """Whether a combination of these rows is less to send than they are."""
        if not isinstance(self.local, Memory):  # rows would have to be held
            return True
        given = self._leaves, self.exchange, self.seen.roster.weights.dtype
        return not self.wire.codes_rows and combination_is_less(*given)

    def _folds(self, rule: Fold) -> bool:
        """Whether the statistics of these rows are less to send than they are."""
        if not isinstance(self.local, Memory):  # as above
            return True
        given = self._leaves, self.exchange, self.seen.roster.weights.dtype
        return not self.wire.codes_rows and statistics_are_less(rule, *given)

    def _row_dtypes(self, combined: list[Array]) -> list[Any]:
        """Those in which rows, or what they combine to, travel."""
        computed = not isinstance(self.local, Memory)
        return [leaf.dtype for leaf in (combined if computed else self._leaves)]

    @property
    def _leaves(self) -> list[Leaf]:
        """The rows held, which no one has mixed yet."""
        if not isinstance(self.local, Memory):
            return []
        return [leaf for leaf in self.local.leaves if not isinstance(leaf, Mixed)]
