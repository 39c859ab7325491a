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
from consensus_optax._rows.sums import each_part
from consensus_optax._rows.trees import floating_leaves
from consensus_optax._rows.verbs import Leaf, decision_dtype
from consensus_optax._rules.kinds import Roster
from consensus_optax._typing import Array, Tree
from consensus_optax.engines.backward import turns
from consensus_optax.engines.backward.dealing import Dealing
from consensus_optax.engines.backward.found import Found, Read, in_memory
from consensus_optax.engines.backward.merging import Merging


class Batch(NamedTuple):
    """What rows are computed of.

    Attributes:
      fun: the loss of one row, (value, aux) with ``has_aux``.
      has_aux: whether it returns aux.
      arranged: its arguments, of all rows.
      params: the argument or arguments that are differentiated.
      dealing: where rows lie, if each is computed by one of many devices.
      scalings: (B,) each, what rows are multiplied by, one after the other.
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
        """Rows as they are looked at."""
        return functools.reduce(verbs.scale, self.scalings, rows)

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

        def make(claim: Claim, rows: Any, whole: Any) -> Reduced:
            if self.dealing is None or not together:
                return Reduced(*read(in_memory([whole], roster), claim))
            rows = whole if self.scalings else rows

            def of_part(rows: Any, like: Any) -> tuple[Any, Any]:
                own = in_memory([rows.astype(whole.dtype)], roster)
                return read(own, claim._replace(like=like))

            return Reduced(*self.dealing.of_coordinates(of_part, rows, claim))

        if self.kept is not None:
            return self._of_kept(self.kept, roster, read, likes)
        if self.turns > 1:
            assert not together
            return turns.apart(self, roster, read)
        return self._pass(roster, make, likes)

    def merged(self, roster: Roster, merging: Merging) -> Found:
        """The same of statistics, sent in place of rows where these are more."""
        dealing = self.dealing
        if dealing is None or self.kept is not None:
            return self.read(roster, merging.read)
        if self.turns > 1:
            return turns.merged(self, roster, merging)

        def make(claim: Claim, rows: Any, whole: Any) -> Reduced:
            def observe(rows: Any, weights: Array, own: Any) -> tuple[Any, ...]:
                there = roster._replace(weights=weights)
                return merging.observe(
                    in_memory([rows.astype(whole.dtype)], there), own
                )

            rows = whole if self.scalings else rows
            given = rows, (roster.weights, merging.given(claim)), claim
            return Reduced((), dealing.merged(observe, merging.statistics, *given))

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
            del whole
            return Reduced((), dealing.dealt(rows, claim), rows=0)

        found = self._pass(roster, make, None)
        return found, self._replace(kept=found)

    def _pass(
        self,
        roster: Roster,
        make: Callable[[Claim, Any, Any], Reduced],
        likes: Sequence[Any] | None,
    ) -> Found:
        """One pass: what is made of rows as they are, and as they are looked at."""

        def reduce(claim: Claim, rows: Any) -> Reduced:
            if is_outer_product(rows) and (self.dealing is not None or not rows.size):
                rows = rows.materialize()  # each on its own device, or of no entries
            if self.dealing is not None and list(claim.order) != sorted(claim.order):
                # parts of the parameter, not of what it is the transpose of: these have
                # the axis that is dealt out last, where a TPU fills it up
                ahead = [0, *(1 + axis for axis in claim.back)]
                made = reduce(claim.in_order(), rows.transpose(ahead))
                return made.out_of_order(claim)
            whole = self.scaled(_as_decided(rows, claim.dtype))
            made = make(claim, rows, whole)
            return dataclasses.replace(made, sums=(self._bad(whole), made.sums))

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

    def _with(self, found: Found, rest: dict[int, Leaf]) -> Found:
        """What was found, with the leaves that are left, and rows finite in all."""
        finite, made = found.finite, found.made
        scaled = {i: self.scaled(x) for i, x in rest.items()}
        if scaled:
            finite &= finite_rows(list(scaled.values()), self.dtype)
        for leaf in made.values():
            finite &= leaf.sums[0] == 0
        made = {i: dataclasses.replace(x, sums=x.sums[1]) for i, x in made.items()}
        return Found(found.value, finite, made, scaled)

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
        return self._with(kept._replace(made=made), kept.rest)

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

        def of_part(rows: Any, like: Any) -> tuple[Any, Any]:
            whole = self.scaled(rows.astype(claim.dtype))
            sums, made = read(in_memory([whole], roster), claim._replace(like=like))
            return (self._bad(whole), sums), made

        return Reduced(*dealing.of_dealt(of_part, rows, claim))

    def _bad(self, rows: Leaf) -> Array:
        """Above 0 for rows that are not finite."""
        return (~finite_rows([rows], self.dtype)).astype(jnp.int32)


def _as_decided(rows: Leaf, dtype: Any) -> Leaf:
    """Rows in their parameter's dtype, whatever the variable's is."""
    if is_outer_product(rows):
        return each_part(lambda part: dataclasses.replace(part, dtype=dtype), rows)
    return rows.astype(dtype)
