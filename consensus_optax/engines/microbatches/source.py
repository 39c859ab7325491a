"""A source that computes its rows a few at a time, as often as it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax._rows import verbs
from consensus_optax._rows.explicit import zeros_as
from consensus_optax._rows.gramians import border
from consensus_optax._rows.statistics import merge_leaves
from consensus_optax._rows.trees import shapes_of
from consensus_optax._rules.coordinates import ALL
from consensus_optax._rules.kinds import Columns, Fold, Reads, Roster, Scaling
from consensus_optax._rules.roster import AllRows
from consensus_optax._running.memory import (
    Memory,
    over_leaves,
    squared_lengths,
    toward,
    with_target,
)
from consensus_optax._running.source import (
    Asked,
    Combined,
    Look,
    Seen,
    rescaled_in_a_loop,
)
from consensus_optax._typing import Array, Tree
from consensus_optax.engines.microbatches.batches import Block, Microbatches, WhenSeen
from consensus_optax.engines.microbatches.combining import combined, given, kept_of
from consensus_optax.engines.microbatches.pairs import gramians
from consensus_optax.engines.microbatches.reading import rows_read, update_read
from consensus_optax.engines.on_trust import Told, combined_on_trust, itself


class _Merged(NamedTuple):
    """Statistics of the rows so far, and whether there has been any row."""

    statistics: list[list[Array]]
    started: Array


class Computed(NamedTuple):
    """Rows of microbatches. Every look is one pass, and no stack is ever held.

    But the Gramian of k microbatches takes the gradients of every pair of them,
    (k + 3) / 2 passes; and who looks at all rows of a coordinate holds them.

    Attributes:
      microbatches: of the rows, with the weights known so far.
      seen: see `Source`.
      known: whether a look has told which rows are sound.
    """

    microbatches: Microbatches
    seen: Seen
    known: bool = False

    @classmethod
    def of(
        cls,
        microbatches: Microbatches,
        step: Array,
        extra: dict[str, Any],
    ) -> Computed:
        """The source before anything has been computed."""
        like = shapes_of(microbatches.params)
        roster = Roster(microbatches.weights, step, extra, like=like)
        return cls(microbatches, Seen(roster, jnp.zeros((), jnp.int32)))

    @property
    def params(self) -> Tree:
        """What rows are gradients of."""
        return self.microbatches.params

    def inner(self, asked: Asked) -> tuple[Any, Computed]:
        """Norms in one pass; so is what only finds out who is there."""
        if self.known and asked.reads == Reads.NOTHING:
            return None, self
        if asked.rescale is None:
            products, kept = self._look(asked)
            return products, self._after(kept)
        (products, kept), scale = rescaled_in_a_loop(
            asked,
            asked.rescale,
            self._look,
            lambda kept: self._after(kept).seen.roster,
            self.microbatches.arranged.varying,
        )
        source = self._after(kept)
        return products, source._replace(seen=source.seen._replace(scale=scale))

    def _look(self, asked: Asked) -> tuple[Any, Any]:
        """The products, and what a pass leaves behind; see :meth:`_after`."""
        micro = self.microbatches
        coordinates = self.seen.roster.coordinates
        center = None if asked.about is None else micro.row(asked.about)
        read = lambda block: rows_read(asked, block, center, micro.indices)
        olds = None
        if asked.previous is not None:
            olds = update_read(asked, coordinates.own(asked.previous), center)

        def step(carry: None, block: Block) -> tuple[None, Any]:
            products: list[Array] = []
            sides: list[Array] = []
            dtype = block.stack.dtype
            if asked.reads.lengths:
                leaves = read(block)
                products = [squared_lengths(asked, leaf, dtype) for leaf in leaves]
            elif asked.reads == Reads.TOWARD:
                pairs = zip(read(block), olds or (), strict=True)
                products = [toward(leaf, old, dtype).T for leaf, old in pairs]
            elif asked.reads.pairs:
                leaves = read(block)
                products = gramians(micro, block.index, leaves, read, dtype)
                if olds is not None:
                    pairs = zip(leaves, olds, strict=True)
                    sides = [verbs.inner_products(leaf, old) for leaf, old in pairs]
            return carry, (products, sides, kept_of(block))

        _, (products, sides, kept) = micro.scan(step, None)
        if asked.reads == Reads.NOTHING:
            return None, kept
        present = self._after(kept).seen.roster.present
        if asked.reads.lengths:
            norms = micro.in_order(products)
            products = [jnp.where(present, leaf, 0) for leaf in norms]
        elif asked.reads == Reads.TOWARD:
            pairs = zip(micro.in_order(products), olds or (), strict=True)
            products = [with_target(leaf.T, present, old) for leaf, old in pairs]
        else:
            pairs = present[:, None] & present[None, :]
            products = [jnp.where(pairs, micro.joined(leaf), 0) for leaf in products]
        if olds is not None and asked.reads.pairs:
            sides = [jnp.where(present, x, 0) for x in micro.in_order(sides)]
            triples = zip(products, sides, olds, strict=True)
            products = [border(*triple) for triple in triples]
        products = coordinates.counted(products)
        return coordinates.total(over_leaves(asked, products)), kept

    def combine(self, weights: Array, exact: bool = False) -> list[Array]:
        """One pass over the rows, which adds in the dtype of decisions.

        A plain backward pass of the weighted losses would round weights and sums to the
        dtype in which the model computes.
        """
        del exact  # nothing travels
        micro = self.microbatches
        return combined(micro, given(micro, weights))[0]

    def combine_on_trust(
        self,
        weigh: Callable[[Computed], Array],
        own: Callable[[Array], Array] = itself,
    ) -> tuple[list[Array], Computed]:
        """One pass; two where that finds a row that cannot count.

        Where losses matter a forward pass comes ahead.
        """
        micro = self.microbatches

        def combine(sound: Array, weights: Array) -> tuple[list[Array], Told]:
            del sound  # of each microbatch that is known before it is looked at
            update, _, kept = combined(micro, given(micro, weights))
            return update, self._told(kept)

        rest = self._knowing, micro.values, micro.arranged.varying
        return combined_on_trust(self, weigh, own, combine, *rest)

    def combine_apart(
        self,
        look: Look,
        exact: bool = False,
        of_all: Callable[[Array], Array] = itself,
    ) -> tuple[Combined, Computed]:
        """One pass; ``of_all``: of what there is for each of these rows, of more."""
        del exact  # nothing travels
        roster = self.seen.roster
        every = of_all(jnp.maximum(roster.weights, 0))
        total = every.sum()
        roster = roster._replace(of=AllRows(every.shape[0], total), coordinates=ALL)

        def weigh(block: Block) -> tuple[Array, Any]:
            products, scale, weights = look(block.some_of(roster))
            scale = jnp.broadcast_to(scale, block.weights.shape)
            return weights, (jax.tree.map(jnp.transpose, products), scale)

        update, told, kept = combined(self.microbatches, weigh)
        products, scale = self.microbatches.in_order(told)
        source = self._after(kept)
        source = source._replace(seen=source.seen._replace(scale=scale))
        products = jax.tree.map(jnp.transpose, products)  # (B,) or (leaves, B)
        return Combined(update, products, total), source

    def statistics(self, rule: Fold) -> tuple[list[list[Array]], Computed]:
        """One pass, which holds the statistics."""
        rule = rule._replace(matters=None)  # says what matters of all rows
        observe = lambda block: block.source.statistics(rule)[0]

        def step(carry: _Merged, block: Block) -> tuple[_Merged, Any]:
            any_row = jnp.any(block.weights > 0)
            merged = merge_leaves(
                rule.statistics,
                carry.statistics,
                observe(block),
                carry.started,
                any_row,
            )
            return _Merged(merged, carry.started | any_row), kept_of(block)

        shapes = jax.eval_shape(lambda: observe(self.microbatches.block(0)))
        empty = zeros_as(shapes)
        start = _Merged(empty, jnp.zeros((), bool))
        end, kept = self.microbatches.scan(step, start)
        return end.statistics, self._after(kept)

    def columns(self, rule: Columns) -> tuple[list[Array], Memory]:
        """Rows are held, in one pass."""
        return self._held().columns(rule)

    def among(self, weights: Array) -> Computed:
        """Nothing is computed yet."""
        micro = self.microbatches._replace(weights=weights)
        return self._replace(microbatches=micro, seen=self.seen.among(weights))

    def scaled(self, factors: Array, sound: Array, tested: bool) -> Computed:
        """Nothing is computed yet; every look tests what it sees."""
        seen = self.seen.without(sound)
        weights = seen.roster.weights
        scalings = *self.microbatches.scalings, jnp.broadcast_to(factors, weights.shape)
        micro = self.microbatches._replace(weights=weights, scalings=scalings)
        return Computed(micro, seen, self.known and tested)

    def scaled_when_seen(self, step: Scaling) -> Computed:
        """No look at a row is needed ahead of the one that everybody takes."""
        when = WhenSeen(step, self.seen.roster.step)
        micro = self.microbatches
        micro = micro._replace(scalings=(*micro.scalings, when))
        seen = self.seen._replace(factors=(*self.seen.factors, None))
        return Computed(micro, seen)

    def mixed(self, matrix: Array, weights: Array) -> Memory:
        """Rows are held, in one pass."""
        return self._held().mixed(matrix, weights)

    def multiplied_out(
        self, send: Callable[[list[Array]], list[Array]], signs: bool
    ) -> tuple[list[Array], Computed]:
        """What ``send`` makes of the rows as arrays, microbatch by microbatch.

        It gives leaves (N m, ...) from (m, ...): with the rows of N devices.
        """

        def step(carry: None, block: Block) -> tuple[None, Any]:
            sent, _ = block.source.multiplied_out(send, signs)
            return carry, (sent, kept_of(block))

        _, (blocks, kept) = self.microbatches.scan(step, None)
        return list(map(self.microbatches.of_devices, blocks)), self._after(kept)

    def _held(self) -> Memory:
        leaves, source = self.multiplied_out(lambda leaves: leaves, signs=False)
        return Memory(leaves, source.seen)

    def _after(self, kept: Any) -> Computed:
        """The source when a pass has left behind what is known of its blocks."""
        return self._knowing(*self._told(kept))

    def _told(self, kept: Any) -> Told:
        """That, of all rows: besides weights, how many do not count, and values."""
        weights, value, factors = self.microbatches.in_order((kept[0], *kept[2:]))
        num_nonfinite = self.seen.num_nonfinite + kept[1].sum(dtype=jnp.int32)
        return weights, num_nonfinite, value, factors

    def _knowing(
        self, weights: Array, num_nonfinite: Array, value: Any, factors: Any
    ) -> Computed:
        """The source with what is then known."""
        found, when = iter(factors), iter(factors)
        all_factors = tuple(
            next(found) if own is None else own for own in self.seen.factors
        )
        scalings = tuple(
            jnp.nan_to_num(next(when), nan=1.0) if isinstance(x, WhenSeen) else x
            for x in self.microbatches.scalings
        )
        micro = self.microbatches._replace(weights=weights, scalings=scalings)
        extra = {"values": micro.losses(value), **self.seen.roster.extra}
        roster = self.seen.roster._replace(weights=weights, extra=extra)
        seen = Seen(roster, num_nonfinite, value, factors=all_factors)
        return Computed(micro, seen, known=True)
