"""Sources: what hands out all that a rule may read of rows, however these come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._rules.kinds import Columns, Fold, Reads, Roster, Scaling
from consensus_optax._running.again import at_most_twice
from consensus_optax._typing import Array


class Seen(NamedTuple):
    """What is known of all rows.

    Attributes:
      roster: all of them; on a mesh those of all devices.
      num_nonfinite: () int32, how many are left out for an inf or a nan.
      value: where a source computes the rows, what the function returned for each; on a
        mesh for each of this device's.
      scale: () what the rows were multiplied by for the products handed out last, or
        (B,) each.
      factors: (B,) each, of every scaling that is done where rows are looked at, what
        it multiplied them by, nan for a row that is not there; None until then.
    """

    roster: Roster
    num_nonfinite: Array
    value: Any = None
    scale: Array | float = 1.0
    factors: tuple[Array | None, ...] = ()

    def among(self, weights: Array) -> Seen:
        """The same with other weights."""
        return self._replace(roster=self.roster._replace(weights=weights))

    def without(self, sound: Array) -> Seen:
        """The same where rows, (B,) or all of them, turn out not to count."""
        weights = self.roster.weights
        lost = (weights > 0) & ~sound
        count = self.num_nonfinite + jnp.sum(lost, dtype=jnp.int32)
        return self.among(jnp.where(sound, weights, 0))._replace(num_nonfinite=count)


class Rescale(NamedTuple):
    """Which scale rows have to have, so that their squared norms are floats.

    Attributes:
      of: (squared norms, roster) to what to multiply by, () or (B,). Squared norms are
        those of rows and of ``previous``, (B,) or (B + 1,), to a few powers of ten.
      start: what a look begins at that is dear: where it is not 1, next to nothing of
        usual size has a square of 0 but zeros, which ask for no other scale beside rows
        that have none.
    """

    of: Callable[[Array, Roster], Array]
    start: float = 1.0


class Asked(NamedTuple):
    """Which inner products are asked for.

    Attributes:
      reads: ``NORMS``, ``NORM_BOUNDS``, ``GRAMIAN``, ``SIGNS``, or ``TOWARD``
        ``previous``; ``NOTHING`` only finds out who is there.
      per_leaf: those of every leaf, stacked, rather than their sum.
      previous: an update, whole, that joins as one row more at the end.
      about: () index of a row that is taken off all rows, and off ``previous``.
      scale: () what all rows, and ``previous``, are multiplied by first, or None; (B,)
        for lengths of rows alone.
      rescale: or None. Products are those of rows times the scale that it tells, which
        may take another look.
    """

    reads: Reads
    per_leaf: bool = False
    previous: list[Array] | None = None
    about: Array | None = None
    scale: Array | None = None
    rescale: Rescale | None = None

    def begun(self, dtype: Any) -> Asked:
        """What the first of two looks is asked for."""
        if self.rescale is None or self.rescale.start == 1:
            return self._replace(rescale=None)
        return self._replace(rescale=None, scale=jnp.asarray(self.rescale.start, dtype))


def rescaled(
    asked: Asked, begun: Any, seen: Seen, look: Callable[[Asked], Any]
) -> tuple[Any, Seen]:
    """Products at the scale that those begun with ask for, and what is known then."""
    if asked.rescale is None:
        return begun, seen
    scale, more = _wanted(asked, asked.rescale, begun, seen.roster)
    again = lambda: look(asked._replace(scale=scale, rescale=None))
    products = lax.cond(more, again, lambda: begun)
    return products, seen._replace(scale=scale)


def _wanted(
    asked: Asked, rescale: Rescale, products: Any, roster: Roster
) -> tuple[Array, Array]:
    """The scale to have products at, and whether it is another than that of these."""
    lengths = Reads(asked.reads).lengths
    squares = products if lengths else jnp.diagonal(products, axis1=-2, axis2=-1)
    squares = squares.sum(0) if asked.per_leaf else squares
    factor = rescale.of(squares, roster)
    other = factor != 1
    if rescale.start != 1:  # rows of zeros, if not all are
        some = squares != 0  # an overflow may have made it nan
        other &= some | ~jnp.any(some)
    more = jnp.any(other)
    return rescale.start * jnp.where(more, factor, 1), more


def rescaled_in_a_loop(
    asked: Asked,
    rescale: Rescale,
    look_at: Callable[[Asked], Any],
    roster_of: Callable[[Any], Roster],
    varying: Callable[[Any], Any],
) -> tuple[Any, Array]:
    """The same where a look is most of the program, which is compiled once.

    Args:
      asked: the products.
      rescale: that of ``asked``.
      look_at: to (products, what is known after it).
      roster_of: what is known, to the roster.
      varying: see :func:`at_most_twice`.

    Returns:
      (what a look gave, scale).
    """
    plain = asked._replace(rescale=None)
    look = lambda scale: look_at(plain._replace(scale=scale))
    wanted = lambda found: _wanted(asked, rescale, found[0], roster_of(found[1]))
    shape = jax.eval_shape(lambda: wanted(look_at(plain))[0])
    start = jnp.full(shape.shape, rescale.start, shape.dtype)
    asks = lambda _, found: wanted(found)
    scale, found = at_most_twice(look, asks, start, varying)
    return found, scale


class Combined(NamedTuple):
    """What rows combine to whose weights were decided as they came.

    Attributes:
      update: sum_i weights[i] row_i of every leaf.
      products: what was read of all rows.
      total: () what all rows weigh by what was known then.
    """

    update: list[Array]
    products: Any
    total: Array


# Some rows to what was read of them, what they were multiplied by for it, and weights.
Look = Callable[[Any], tuple[Any, Array | float, Array]]


class Source(Protocol):
    """Rows, as much of them as a rule can ask for.

    Whoever is there may be found out by the first look at the rows alone: each look
    gives the source to go on with, whose ``seen`` is complete. Updates are in pieces,
    ``seen.roster.coordinates`` knows which.
    """

    @property
    def seen(self) -> Seen:
        """What is known of the rows so far."""
        ...

    def inner(self, asked: Asked) -> tuple[Any, Source]:
        """Inner products, 0 where a row is absent: what :class:`Reads` says."""
        ...

    def combine(self, weights: Array, exact: bool = False) -> list[Array]:
        """sum_i weights[i] row_i of every leaf; weights (B,), or (leaves, B).

        In the dtype of decisions; parts of sums may travel in a narrower one, unless
        ``exact``.
        """
        ...

    def statistics(self, rule: Fold) -> tuple[list[list[Array]], Source]:
        """For every statistic of a fold its merged value in every leaf."""
        ...

    def columns(self, rule: Columns) -> tuple[list[Array], Source]:
        """What a rule makes of all rows of a coordinate."""
        ...

    def among(self, weights: Array) -> Source:
        """The same rows with other weights; absent ones stay so."""
        ...

    def scaled(self, factors: Array, sound: Array, tested: bool) -> Source:
        """Row i times factors[i]; rows that are not sound are lost, and counted.

        Args:
          factors: (B,), or () for all rows, finite and not negative.
          sound: likewise bool.
          tested: whether a row that is finite is so afterwards, whatever its dtype.
        """
        ...

    def mixed(self, matrix: Array, weights: Array) -> Source:
        """Rows sum_j matrix[i, j] row_j with new weights; absent ones have zeros."""
        ...


@runtime_checkable
class Unseen(Source, Protocol):
    """Rows that somebody has to look at before it is known who is there."""

    def combine_on_trust(
        self, weigh: Callable[[Any], Array]
    ) -> tuple[list[Array], Unseen]:
        """What rows combine to with weights that no gradient is read for.

        Args:
          weigh: a source that has been looked at, to weights, (B,).

        Returns:
          That, and the source to go on with. One look does if all rows are sound.
        """
        ...

    def combine_apart(
        self, look: Look, exact: bool = False
    ) -> tuple[Combined, Unseen] | None:
        """What rows combine to if a look at each tells its weight, and the source.

        One look at all does, whoever is sound. None where that takes as many as for
        other weights, or all rows are held.
        """
        ...

    def scaled_when_seen(self, step: Scaling) -> Unseen | None:
        """Rows that each look scales anew, one row by its own length alone.

        So that takes no look of its own; what they are multiplied by is the last of
        ``seen.factors`` once somebody has looked. None where it would take one.
        """
        ...
