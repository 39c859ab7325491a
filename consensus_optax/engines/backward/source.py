"""A source that reduces its rows inside of the backward pass which makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from consensus_optax._gradients.claims import Claim
from consensus_optax._gradients.per_example import value_and_rows
from consensus_optax._rows.finite import finite_rows
from consensus_optax._rows.stack import as_stack
from consensus_optax._rows.trees import shapes_of
from consensus_optax._rules.kinds import Columns, Fold, Reads, Roster, Scaling
from consensus_optax._running.again import at_most_twice
from consensus_optax._running.memory import Memory, over_leaves
from consensus_optax._running.source import Asked, Look, Seen, rescaled_in_a_loop
from consensus_optax._typing import Array, Tree
from consensus_optax.engines.backward import merging, turns
from consensus_optax.engines.backward.found import Found, in_memory
from consensus_optax.engines.backward.merging import Merging
from consensus_optax.engines.backward.passes import Batch
from consensus_optax.engines.on_trust import Told, combined_on_trust, itself

# Of rows, to what is like the parameter for each of their leaves.
Make = Callable[[Memory], list[Any]]


class Backward(NamedTuple):
    """Rows of which nothing is held beyond the layer that a backward pass is at.

    Every look is one pass: of inner products, of statistics, of a combination. A fold
    takes all rows to be sound, which the same pass tells, and does it again if one is
    not; so do columns, which see all rows of one layer's coordinates at a time. Rows
    are scaled, and mixed, in each pass anew.

    Attributes:
      batch: what rows are computed of.
      seen: see `Source`.
      known: whether a pass has told which rows are sound.
      keeps: whether the next pass is to keep what it makes.
    """

    batch: Batch
    seen: Seen
    known: bool = False
    keeps: bool = False

    @classmethod
    def of(
        cls,
        batch: Batch,
        weights: Array,
        step: Array,
        extra: dict[str, Any],
        keeps: bool = False,
    ) -> Backward:
        """The source before anything has been computed; weights may be wrong, < 0."""
        roster = Roster(weights, step, extra, like=shapes_of(batch.params))
        return cls(batch, Seen(roster, jnp.zeros((), jnp.int32)), keeps=keeps)

    @property
    def params(self) -> Tree:
        """What rows are gradients of."""
        return self.batch.params

    def inner(self, asked: Asked) -> tuple[Any, Backward]:
        """One pass, or two of which the second is at another scale."""
        if self.known and asked.reads == Reads.NOTHING:
            return None, self
        if self.keeps:
            return self._kept().inner(asked)
        if asked.rescale is None:
            products, told = self._look(asked)
            return products, self._told(*told)
        (products, told), scale = rescaled_in_a_loop(
            asked,
            asked.rescale,
            self._look,
            lambda told: self._told(*told).seen.roster,
            self.batch.arranged.varying,
        )
        source = self._told(*told)
        return products, source._replace(seen=source.seen._replace(scale=scale))

    def _look(self, asked: Asked) -> tuple[Any, Any]:
        """The products, and what a pass has told; see :meth:`_told`."""
        roster, previous = self.seen.roster, asked.previous
        if asked.scale is not None:  # rows may have their own, and come by turns
            roster = roster._replace(scale=asked.scale)
        olds = None if previous is None else roster.coordinates.own(previous)

        def inner(rows: Memory, olds: list[Array] | None, per_leaf: bool) -> Any:
            given = rows.seen.roster.scale
            scale = None if asked.scale is None else jnp.asarray(given)
            own = asked._replace(scale=scale, previous=olds, per_leaf=per_leaf)
            return rows.inner(own)[0]

        def read(rows: Memory, claim: Claim) -> tuple[Any, tuple[()]]:
            own = None if olds is None else [claim.like]
            return inner(rows, own, False), ()

        together = asked.reads.pairs or asked.reads == Reads.TOWARD
        found = self.batch.read(roster, read, olds, together)
        told = self._sound(found)
        if asked.reads == Reads.NOTHING:
            return None, told
        made = {i: leaf.sums for i, leaf in found.made.items()}
        products = list(made.values())
        if found.rest:
            own = None if olds is None else [olds[i] for i in found.rest]
            memory = in_memory(list(found.rest.values()), roster)
            of_rest = inner(memory, own, asked.per_leaf)
            if asked.per_leaf:
                made |= dict(zip(found.rest, list(of_rest), strict=True))
                products = [made[i] for i in range(len(made))]
            else:
                products = [*products, of_rest]
        masked = _of_present(over_leaves(asked, products), asked, told[0] > 0)
        return roster.coordinates.total(masked), told

    def combine(self, weights: Array, exact: bool = False) -> list[Array]:
        """One pass, which adds in the dtype of decisions.

        A plain backward pass of the weighted losses would round weights and sums to the
        dtype in which the model computes.
        """
        del exact  # nothing travels
        return self._combined(weights)[0]

    def combine_on_trust(
        self,
        weigh: Callable[[Backward], Array],
        own: Callable[[Array], Array] = itself,
    ) -> tuple[list[Array], Backward]:
        """One pass; two where that finds a row that cannot count.

        Where losses matter a forward pass comes ahead.
        """

        def combine(sound: Array, weights: Array) -> tuple[list[Array], Told]:
            update, found = self.among(sound)._combined(weights)
            return update, self._sound(found)

        values = lambda: turns.values(self.batch)
        rest = self._told, values, self.batch.arranged.varying
        return combined_on_trust(self, weigh, own, combine, *rest)

    def _combined(self, weights: Array) -> tuple[list[Array], Found]:
        """The combination, and all else that the pass found.

        One of mixed rows is one of those that they are made of, and may travel so.
        """
        roster, batch = self.seen.roster, self.batch
        mixture = batch.mixture
        if mixture is not None and mixture.tested:
            roster, weights = mixture.before, mixture.weights(weights)
            batch = batch._replace(mixture=None)
        found = batch.merged(roster, merging.of_combination(weights))
        by_leaf = {i: leaf.likes[0] for i, leaf in found.made.items()}
        if found.rest:
            memory = in_memory(list(found.rest.values()), roster)
            own = weights if weights.ndim == 1 else weights[np.array(list(found.rest))]
            combined = memory.combine(own)
            by_leaf |= dict(zip(found.rest, combined, strict=True))
        return [by_leaf[i] for i in range(len(by_leaf))], found

    def statistics(self, rule: Fold) -> tuple[list[list[Array]], Backward]:
        """One pass; two where that finds a row that cannot count."""

        def of_leaves(rows: Memory) -> list[Any]:
            return list(zip(*rows.statistics(rule)[0], strict=True))

        leaves, source = self._by_leaf(of_leaves, merging.of_fold(rule))
        return [list(each) for each in zip(*leaves, strict=True)], source

    def columns(self, rule: Columns) -> tuple[list[Array], Backward]:
        """As for statistics; of all rows, where they come by turns."""
        source = self._kept() if self.keeps and self.batch.turns > 1 else self
        return source._by_leaf(lambda rows: rows.columns(rule)[0])

    def _by_leaf(
        self, make: Make, merges: Merging | None = None
    ) -> tuple[list[Any], Backward]:
        """What is made of every leaf: like the parameter, of the rows that count."""
        if self.known:
            return self._made(make, merges)[0], self

        def look(weights: Array) -> tuple[list[Any], Told]:
            made, found = self.among(weights)._made(make, merges)
            return made, self._sound(found)

        def asks(weights: Array, found: Any) -> tuple[Array, Array]:
            sound = found[1][0]
            return sound, jnp.any((weights > 0) != (sound > 0))

        given = jnp.maximum(self.seen.roster.weights, 0)
        varying = self.batch.arranged.varying
        _, (made, told) = at_most_twice(look, asks, given, varying)
        return made, self._told(*told)

    def among(self, weights: Array) -> Backward:
        """Nothing is computed yet."""
        return self._replace(seen=self.seen.among(weights))

    def scaled(self, factors: Array, sound: Array, tested: bool) -> Backward:
        """Nothing is computed yet, unless rows are to be kept."""
        source = self._kept() if self.keeps else self
        seen = source.seen.without(sound)
        given = jnp.broadcast_to(factors, seen.roster.weights.shape)
        batch = source.batch.times(given, tested)
        return Backward(batch, seen, source.known and tested)

    def combine_apart(self, look: Look, exact: bool = False) -> None:
        """How long a row is tells its last layer alone."""
        del look, exact

    def scaled_when_seen(self, step: Scaling) -> None:
        """As for combining."""
        del step

    def mixed(self, matrix: Array, weights: Array) -> Backward:
        """Nothing is computed yet, unless rows are to be kept."""
        source = self._kept() if self.keeps else self
        batch = source.batch.mixed(matrix, source.seen.roster)
        return Backward(batch, source.seen.among(weights), known=True)

    def multiplied_out(
        self, send: Callable[[list[Array]], list[Array]], signs: bool
    ) -> tuple[list[Array], Memory]:
        """What ``send`` makes of the rows as arrays."""
        batch = self.batch
        value, rows = value_and_rows(batch.fun, batch.arranged, batch.has_aux)
        stack = as_stack(rows, batch.params)
        leaves = list(map(batch.scaled, stack.leaves))
        finite = finite_rows(leaves, stack.dtype)
        told = self._sound(Found(value, finite, {}, {}))
        return Memory(leaves, self._told(*told).seen).multiplied_out(send, signs)

    def _made(self, make: Make, merges: Merging | None) -> tuple[list[Any], Found]:
        """The same of the rows of this roster, and all else that the pass found."""
        roster = self.seen.roster

        def read(rows: Memory, claim: Claim) -> tuple[tuple[()], Any]:
            del claim
            (made,) = make(rows)
            return (), made

        batch = self.batch
        found = batch.merged(roster, merges) if merges else batch.read(roster, read)
        by_leaf = {i: leaf.likes for i, leaf in found.made.items()}
        if found.rest:
            of_rest = make(in_memory(list(found.rest.values()), roster))
            by_leaf |= dict(zip(found.rest, of_rest, strict=True))
        return [by_leaf[i] for i in range(len(by_leaf))], found

    def _kept(self) -> Backward:
        """The same of rows that one pass has left where they were dealt to."""
        found, batch = self.batch.keeping(self.seen.roster)
        source = self._told(*self._sound(found))
        return source._replace(batch=batch, keeps=False)

    def _sound(self, found: Found) -> Told:
        """What a pass tells: weights of sound rows, how many are not, values."""
        given = self.seen.roster.weights
        if self.known:
            return given, self.seen.num_nonfinite, found.value
        sound = found.finite & (given > 0)
        num_wrong = jnp.sum((given != 0) & ~sound, dtype=jnp.int32)
        num_wrong += self.seen.num_nonfinite
        return jnp.where(sound, given, 0), num_wrong, found.value

    def _told(self, weights: Array, num_nonfinite: Array, value: Any) -> Backward:
        """The source with what is then known."""
        roster = self.seen.roster
        extra = {"values": self.batch.losses(value), **roster.extra}
        roster = roster._replace(weights=weights, extra=extra)
        return self._replace(seen=Seen(roster, num_nonfinite, value), known=True)


def _of_present(products: Array, asked: Asked, present: Array) -> Array:
    """Inner products with zeros for rows that turned out not to be there."""
    extra = products.shape[-1] - present.shape[0]  # an update
    present = jnp.pad(present, (0, extra), constant_values=True)
    if not asked.reads.pairs:
        return jnp.where(jnp.broadcast_to(present, products.shape), products, 0)
    return jnp.where(present[:, None] & present[None, :], products, 0)
