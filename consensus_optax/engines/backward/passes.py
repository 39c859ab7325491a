"""One backward pass over all rows, which keeps of each leaf what is made of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from consensus_optax._gradients.arguments import Arranged
from consensus_optax._gradients.claims import SMALL, Claim, Reduced
from consensus_optax._gradients.per_example import value_and_reduced
from consensus_optax._rows import verbs
from consensus_optax._rows.finite import finite_rows
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rows.trees import floating_leaves
from consensus_optax._rows.verbs import AnyLeaf, Leaf, decision_dtype
from consensus_optax._rules.kinds import Roster
from consensus_optax._typing import Array, Tree
from consensus_optax.engines.backward import turns
from consensus_optax.engines.backward.dealing import Dealing
from consensus_optax.engines.backward.found import Found, Read, as_decided, in_memory
from consensus_optax.engines.backward.merging import Merging
from consensus_optax.engines.backward.mixture import Mixture
from consensus_optax.engines.backward.told import arrays_of, with_arrays


class Batch(NamedTuple):
    """What rows are computed of.

    Attributes:
      fun: the loss of one row, (value, aux) with ``has_aux``.
      has_aux: whether it returns aux.
      arranged: its arguments, of all rows.
      params: the argument or arguments that are differentiated.
      dealing: where rows lie, if each is computed by one of many devices.
      scalings: (B,) each, what rows are multiplied by, one after the other.
      mixture: of what they are mixed then, if they are.
      kept: what a pass found that has left rows where they were dealt to, which are
        what it has ``made``. Of B rows on N devices each holds those of an Nth part of
        the coordinates: as much as B / N whole rows.
      turns: how many passes of as many rows each take the place of one.
    """

    fun: Callable[..., Any]
    has_aux: bool
    arranged: Arranged
    params: Tree
    dealing: Dealing | None = None
    scalings: tuple[Array, ...] = ()
    mixture: Mixture | None = None
    kept: Found | None = None
    turns: int = 1

    @property
    def dtype(self) -> Any:
        """In which rules decide."""
        return decision_dtype(self.params)

    def losses(self, value: Any) -> Array:
        """The losses in what the function returned for every row."""
        return value[0] if self.has_aux else value

    def scaled(self, rows: Leaf) -> Any:
        """Rows as they are looked at, or are mixed; rounded where they travel so."""
        scaled = functools.reduce(verbs.scale, self.scalings, rows)
        return scaled if self.dealing is None else self.dealing.rounded(scaled)

    def times(self, factors: Array, tested: bool) -> Batch:
        """The same of rows times factors; ``tested``: see `Source.scaled`."""
        if self.mixture is not None:
            return self._replace(mixture=self.mixture.scaled(factors, tested))
        return self._replace(scalings=(*self.scalings, factors))

    def mixed(self, matrix: Array, roster: Roster) -> Batch:
        """The same of rows sum_j matrix[i, j] row_j, of these here."""
        known = self.mixture
        mixture = known.mixed(matrix) if known else Mixture(matrix, roster)
        return self._replace(mixture=mixture)

    def read(
        self,
        roster: Roster,
        read: Read,
        likes: Sequence[Any] | None = None,
        together: bool = True,
    ) -> Found:
        """One pass, unless all rows are kept.

        Args:
          roster: which rows are there, as far as is known.
          read: what to make of one leaf, or of one layer's part of it, there and then.
          likes: an update, of which claims have what belongs to their part.
          together: whether that takes several rows at once.
        """
        alone = self.mixture is None

        def make(claim: Claim, rows: Any, whole: Any) -> Reduced:
            if self.dealing is None:
                return Reduced(*self._looked_at(roster, read, whole, claim))
            if alone and not together:
                return self._of_each_row(self.dealing, roster, read, whole, claim)
            rows = whole if self.scalings else self.dealing.rounded(rows)

            def of_part(rows: Any, like: Any, told: Any) -> tuple[Any, Any]:
                batch, there = with_arrays(self, roster, told)
                own, given = rows.astype(whole.dtype), claim._replace(like=like)
                if not alone:
                    return batch._looked_at(there, read, own, given)
                return read(in_memory([own], there), given)

            given = rows, claim, arrays_of(self, roster)
            made = Reduced(*self.dealing.of_coordinates(of_part, *given))
            return self._tested(whole, made, claim) if alone else made

        if self.kept is not None:
            return self._of_kept(self.kept, roster, read, likes)
        if self.turns > 1:
            assert not together
            return turns.apart(self, roster, read)
        return self._pass(roster, make, likes)

    def merged(self, roster: Roster, merging: Merging) -> Found:
        """The same of statistics, sent in place of rows where these are more."""
        dealing = self.dealing
        if dealing is None or self.kept is not None or self.mixture is not None:
            return self.read(roster, merging.read)
        if self.turns > 1:
            return turns.merged(self, roster, merging)

        def make(claim: Claim, rows: Any, whole: Any) -> Reduced:
            def observe(rows: Any, weights: Array, own: Any) -> tuple[Any, ...]:
                there = roster._replace(weights=weights)
                return merging.observe(
                    in_memory([rows.astype(whole.dtype)], there), own
                )

            rows = whole if self.scalings else dealing.rounded(rows)
            given = rows, (roster.weights, merging.given(claim)), claim
            merged = Reduced((), dealing.merged(observe, merging.statistics, *given))
            return self._tested(whole, merged, claim)

        return self._pass(roster, make, None)

    def of_turn(self, index: Array) -> Batch:
        """The rows of one turn."""
        own = lambda of_all: turns.own_rows(of_all, index, self.turns)
        arranged = self.arranged.turn(index, self.turns)
        scalings = tuple(map(own, self.scalings))
        return self._replace(arranged=arranged, scalings=scalings, turns=1)

    def keeping(self, roster: Roster) -> tuple[Found, Batch]:
        """One pass that leaves rows where they are dealt to; the batch with these."""
        dealing = self.dealing
        assert dealing is not None
        assert not self.scalings
        if self.turns > 1:
            found = turns.keeping(self, roster)
            return found, self._replace(kept=found)

        def make(claim: Claim, rows: Any, whole: Any) -> Reduced:
            dealt = Reduced((), dealing.dealt(rows, claim), rows=0)
            return self._tested(whole, dealt, claim)

        found = self._pass(roster, make, None)
        return found, self._replace(kept=found)

    def _pass(
        self,
        roster: Roster,
        make: Callable[[Claim, Any, Any], Reduced],
        likes: Sequence[Any] | None,
    ) -> Found:
        """One pass: what is made of rows as they are, and scaled; and who is finite."""

        def reduce(claim: Claim, rows: Any) -> Reduced:
            if is_outer_product(rows) and (self.dealing is not None or not rows.size):
                rows = rows.materialize()  # each on its own device, or of no entries
            if self.dealing is not None and list(claim.order) != sorted(claim.order):
                # parts of the parameter, not of what it is the transpose of: these have
                # the axis that is dealt out last, where a TPU fills it up
                ahead = [0, *(1 + axis for axis in claim.back)]
                made = reduce(claim.in_order(), rows.transpose(ahead))
                return made.out_of_order(claim)
            return make(claim, rows, self.scaled(as_decided(rows, claim.dtype)))

        value, leaves = value_and_reduced(
            self.fun, self.arranged, self.has_aux, reduce, likes
        )
        if self.dealing is not None:
            # sums of products, as of a table that is tied to the output, came too late
            leaves = [self._late(i, x, reduce, likes) for i, x in enumerate(leaves)]
        made = {i: x for i, x in enumerate(leaves) if isinstance(x, Reduced)}
        rest: Any = {i: x for i, x in enumerate(leaves) if i not in made}
        found = Found(value, jnp.ones(roster.weights.shape, bool), made, {})
        return self._with(found, rest)

    def _late(
        self,
        number: int,
        leaf: Any,
        reduce: Callable[[Claim, Leaf], Reduced],
        likes: Sequence[Any] | None,
    ) -> Any:
        """What is made of a leaf of products that no claim was settled for."""
        if not is_outer_product(leaf) or leaf.size < SMALL * leaf.shape[0]:
            return leaf
        like, order = None if likes is None else likes[number], range(leaf.ndim - 1)
        return reduce(Claim(number, leaf.dtype, 0, like, tuple(order)), leaf)

    def _with(self, found: Found, rest: dict[int, Any]) -> Found:
        """What was found, with the leaves that are left, and rows finite in all."""
        finite, made = found.finite, found.made
        looked_at = {i: self._mixed(self.scaled(x)) for i, x in rest.items()}
        if looked_at:
            finite &= self._bad(list(looked_at.values())) == 0
        for leaf in made.values():
            finite &= leaf.sums[0] == 0
        made = {i: dataclasses.replace(x, sums=x.sums[1]) for i, x in made.items()}
        return Found(found.value, finite, made, looked_at)

    def _of_kept(
        self, kept: Found, roster: Roster, read: Read, likes: Sequence[Any] | None
    ) -> Found:
        """The same of rows that are there."""
        leaves = floating_leaves(self.params)

        def of_leaf(number: int, rows: Reduced) -> Reduced:
            like = None if likes is None else likes[number]
            order = tuple(range(rows.likes.ndim - 1))
            claim = Claim(number, leaves[number].dtype, rows.rows or 0, like, order)
            return self._of_layers(roster, read, claim, rows.likes)

        made = {i: of_leaf(i, rows) for i, rows in kept.made.items()}
        of_mixed = jnp.ones(roster.weights.shape, bool)
        finite = of_mixed if self.mixture else kept.finite
        return self._with(kept._replace(made=made, finite=finite), kept.rest)

    def _of_layers(
        self, roster: Roster, read: Read, claim: Claim, rows: Array
    ) -> Reduced:
        """The same of one leaf, (..., B, ...), by turns where layers are stacked."""
        if claim.axis:
            turn = lambda given: self._of_layers(
                roster, read, claim.of_turn(given[1]), given[0]
            )
            return lax.map(turn, (rows, claim.like)).stacked()
        dealing = self.dealing
        assert dealing is not None

        def of_part(rows: Any, like: Any, told: Any) -> tuple[Any, Any]:
            batch, there = with_arrays(self, roster, told)
            whole = batch.scaled(rows.astype(claim.dtype))
            return batch._looked_at(there, read, whole, claim._replace(like=like))

        told = arrays_of(self, roster)
        return Reduced(*dealing.of_dealt(of_part, rows, claim, told))

    def _looked_at(
        self, roster: Roster, read: Read, rows: Leaf, claim: Claim
    ) -> tuple[Any, Any]:
        """What is made of rows that have been scaled, and which are not finite."""
        mixed = self._mixed(rows)
        sums, likes = read(in_memory([mixed], roster), claim)
        return (self._bad([mixed]), sums), likes

    def _of_each_row(
        self, dealing: Dealing, roster: Roster, read: Read, rows: Any, claim: Claim
    ) -> Reduced:
        """The same of each row by itself, wherever it is."""

        def function(rows: Any, weights: Array, *scale: Array) -> tuple[Any, Any]:
            there = roster._replace(weights=weights)
            there = there._replace(scale=scale[0]) if scale else there
            return self._bad([rows]), read(in_memory([rows], there), claim)[0]

        scale = jnp.asarray(roster.scale)
        given = (roster.weights, *([scale] if scale.ndim else []))  # of each row
        return Reduced(dealing.of_each_row(function, rows, given, claim), ())

    def _tested(self, rows: Any, made: Reduced, claim: Claim) -> Reduced:
        """What was made of rows, each by its own device, and which are not finite."""
        dealing, look = self.dealing, lambda rows: self._bad([rows])
        assert dealing is not None
        bad = dealing.of_each_row(look, rows, (), claim)
        return dataclasses.replace(made, sums=(bad, made.sums))

    def _mixed(self, rows: Leaf) -> AnyLeaf:
        """Rows as they are looked at."""
        return rows if self.mixture is None else self.mixture.of(rows)

    def _bad(self, leaves: Sequence[AnyLeaf]) -> Array:
        """Above 0 for rows, as they are looked at, that are not finite."""
        if self.mixture is not None:
            return self.mixture.bad(leaves, self.dtype)
        given: Any = leaves
        return (~finite_rows(given, self.dtype)).astype(jnp.int32)
