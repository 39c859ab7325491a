"""A source of which somebody has asked already what others will ask again."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from consensus_optax._rules.kinds import Columns, Fold, Reads
from consensus_optax._running.source import Asked, Seen, Source, rescaled
from consensus_optax._typing import Array


class Recalled(NamedTuple):
    """The same rows; what is known is not computed again.

    Attributes:
      source: the rows.
      products: (L, B, B) inner products in every leaf, or (L, B) squared norms.
      mean: what the rows combine to with these shares, or None.
      shares: (B,), or None.
    """

    source: Any  # a Source, all of which are NamedTuples
    products: Array
    mean: list[Array] | None = None
    shares: Array | None = None

    @property
    def seen(self) -> Seen:
        """See `Source`; so are the others."""
        return self.source.seen

    def inner(self, asked: Asked) -> tuple[Any, Source]:
        """Known as they are; other ones, and those at a scale, take a look."""
        if asked.reads == Reads.NOTHING:  # who is there is known as well
            return None, self
        plain = asked.previous is None and asked.about is None and asked.scale is None
        known = self._known(asked) if plain else None
        if known is None:
            products, source = self.source.inner(asked)
            # which may have dealt the rows out, so that a mean is in other pieces
            return products, self._replace(source=source, mean=None)
        look = lambda asked: self.source.inner(asked)[0]
        if asked.rescale is not None:
            asked = asked._replace(rescale=asked.rescale._replace(start=1.0))
        products, seen = rescaled(asked, known, self.seen, look)
        return products, self._replace(source=self.source._replace(seen=seen))

    def _known(self, asked: Asked) -> Array | None:
        """The products asked for, None if these do not tell."""
        products, pairs = self.products, self.products.ndim == 3
        if asked.reads == Reads.NORMS:
            if pairs:
                products = jnp.diagonal(products, axis1=-2, axis2=-1)
        elif asked.reads != Reads.GRAMIAN or not pairs:
            return None
        return products if asked.per_leaf else products.sum(0)

    def combine(self, weights: Array, exact: bool = False) -> list[Array]:
        """The mean is known; whether it is asked for, the weights tell."""
        other = lambda: self.source.combine(weights, exact)
        if self.mean is None or exact or weights.ndim > 1:
            return other()
        return lax.cond(jnp.all(weights == self.shares), lambda: self.mean, other)

    def statistics(self, rule: Fold) -> tuple[list[list[Array]], Source]:
        """Nothing is known of these."""
        return self.source.statistics(rule)

    def columns(self, rule: Columns) -> tuple[list[Array], Source]:
        """Nor of these."""
        return self.source.columns(rule)

    def among(self, weights: Array) -> Source:
        """Products of fewer rows are asked for anew."""
        return self.source.among(weights)

    def scaled(self, factors: Array, sound: Array, tested: bool) -> Source:
        """So are those of other rows."""
        return self.source.scaled(factors, sound, tested)

    def mixed(self, matrix: Array, weights: Array) -> Source:
        """And of these."""
        return self.source.mixed(matrix, weights)
