"""Passes over a few rows of a mesh at a time, joined as if all had been in one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._gradients.arguments import Arranged
from consensus_optax._gradients.claims import Claim, Reduced
from consensus_optax._gradients.per_example import value_and_rows
from consensus_optax._rows.explicit import zeros_as
from consensus_optax._rows.statistics import merge_present
from consensus_optax._rows.verbs import as_array
from consensus_optax._rules.kinds import Roster
from consensus_optax._running.memory import Memory
from consensus_optax._typing import Array
from consensus_optax.engines.backward.dealing import Dealing
from consensus_optax.engines.backward.found import Found, Read, in_memory
from consensus_optax.engines.backward.merging import Merging


class InTurns(Protocol):
    """A `Batch` whose rows come by turns, as far as it is asked here."""

    @property
    def fun(self) -> Callable[..., Any]:
        """The loss of one row."""
        ...

    @property
    def has_aux(self) -> bool:
        """Whether it returns aux."""
        ...

    @property
    def arranged(self) -> Arranged:
        """Its arguments, of all rows."""
        ...

    @property
    def turns(self) -> int:
        """How many there are."""
        ...

    @property
    def dealing(self) -> Dealing | None:
        """Where rows lie."""
        ...

    def of_turn(self, index: Array) -> Any:
        """The `Batch` of one turn."""
        ...


def own_rows(of_all: Array, index: Array, turns: int) -> Array:
    """Of what there is for every row, (B, ...), that of the rows of a turn.

    They are index, index + k, ...: on a mesh each device's stay where they are.
    """
    apart = of_all.reshape(of_all.shape[0] // turns, turns, *of_all.shape[1:])
    return lax.dynamic_index_in_dim(apart, index, 1, keepdims=False)


def values(batch: InTurns) -> Any:
    """What the function returns for each row; a compiled program has no more."""
    if batch.turns == 1:
        return value_and_rows(batch.fun, batch.arranged, batch.has_aux)[0]
    of_turn = lambda index: values(batch.of_turn(index))
    return _in_order(lax.map(of_turn, jnp.arange(batch.turns)))


def merged(batch: InTurns, roster: Roster, merging: Merging) -> Found:
    """What is made of the rows of every turn, merged; see `Batch.merged`."""
    own = lambda x, index: own_rows(x, index, batch.turns)

    def made_in(index: Array) -> tuple[Found, Array]:
        there = roster._replace(weights=own(roster.weights, index))
        given = lambda claim: jax.tree.map(
            lambda x: own(x, index), merging.given(claim)
        )
        mine = merging._replace(given=given)
        found = batch.of_turn(index).merged(there, mine)
        return _whole(found, mine.read, there), jnp.any(there.weights > 0)

    def step(carry: Any, index: Array) -> tuple[Any, Any]:
        likes, started = carry
        found, some = made_in(index)

        def joined(number: int, seen: Reduced) -> tuple[Any, ...]:
            triples = zip(merging.statistics, likes[number], seen.likes, strict=True)
            merge = lambda each, x, y: merge_present(each.merge, x, y, started, some)
            return tuple(merge(*triple) for triple in triples)

        likes = {number: joined(number, seen) for number, seen in found.made.items()}
        return (likes, started | some), (found.value, found.finite)

    found, _ = jax.eval_shape(made_in, jnp.int32(0))
    likes = zeros_as({number: seen.likes for number, seen in found.made.items()})
    start = likes, jnp.zeros((), bool)
    (likes, _), told = lax.scan(step, start, jnp.arange(batch.turns))
    made = {number: Reduced((), own) for number, own in likes.items()}
    value, finite = _in_order(told)
    return Found(value, finite, made, {})


def apart(batch: InTurns, roster: Roster, read: Read) -> Found:
    """What is read of every row by itself."""

    def step(carry: None, index: Array) -> tuple[None, Any]:
        own = lambda x: own_rows(x, index, batch.turns) if jnp.ndim(x) else x
        there = roster._replace(weights=own(roster.weights), scale=own(roster.scale))
        found = batch.of_turn(index).read(there, read, together=False)
        made = _whole(found, read, there).made
        sums = {number: seen.sums for number, seen in made.items()}
        return carry, (found.value, found.finite, sums)

    _, told = lax.scan(step, None, jnp.arange(batch.turns))
    value, finite, sums = _in_order(told)
    made = {number: Reduced(own, ()) for number, own in sums.items()}
    return Found(value, finite, made, {})


def keeping(batch: InTurns, roster: Roster) -> Found:
    """All rows, left where every turn has dealt them to."""
    dealing = batch.dealing
    assert dealing is not None
    place: dict[int, int] = {}

    def deal(rows: Memory, claim: Claim) -> tuple[tuple[()], Array]:
        leaf: Any = rows.leaves[0]
        return (), dealing.dealt(as_array(leaf, leaf.dtype), claim)

    def step(carry: None, index: Array) -> tuple[None, Any]:
        weights = own_rows(roster.weights, index, batch.turns)
        there = roster._replace(weights=weights)
        found = batch.of_turn(index).keeping(there)[0]
        made = _whole(found, deal, there).made
        place.update({number: seen.rows or 0 for number, seen in made.items()})
        likes = {number: seen.likes for number, seen in made.items()}
        return carry, (found.value, found.finite, likes)

    _, (value, finite, likes) = lax.scan(step, None, jnp.arange(batch.turns))
    made = {
        number: Reduced((), _in_order(own, place[number]), rows=place[number])
        for number, own in likes.items()
    }
    value, finite = _in_order((value, finite))
    return Found(value, finite, made, {})


def _whole(found: Found, read: Read, roster: Roster) -> Found:
    """The same where what no pass has reduced is reduced as well."""

    def made(number: int, leaf: Any) -> Reduced:
        claim = Claim(number, leaf.dtype, 0, order=tuple(range(leaf.ndim - 1)))
        return Reduced(*read(in_memory([leaf], roster), claim))

    rest = {number: made(number, leaf) for number, leaf in found.rest.items()}
    return found._replace(made={**found.made, **rest}, rest={})


def _in_order(by_turn: Any, place: int = 0) -> Any:
    """Leaves (k, ..., m, ...) to (..., B, ...), where ``place`` axes lead those."""

    def join(leaf: Array) -> Array:
        rows = jnp.moveaxis(leaf, 0, place + 1)
        count = math.prod(rows.shape[place : place + 2])
        return rows.reshape(*rows.shape[:place], count, *rows.shape[place + 2 :])

    return jax.tree.map(join, by_turn)
