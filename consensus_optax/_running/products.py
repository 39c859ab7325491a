"""Inner products as rules read them: right to rounding, whatever a few rows hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._rules.distances import num_present, squared_distances
from consensus_optax._rules.kinds import Mixing, Reads, Roster, Scaling, Weighting
from consensus_optax._running.source import Asked, Rescale, Source
from consensus_optax._typing import Array

# A distance is a difference of squared norms. Where these are larger than its square by
# more than this factor, too many digits are lost.
_COARSE = 30.0


def read_products(
    rule: Weighting | Mixing | Scaling,
    source: Source,
    per_leaf: bool = False,
    previous: list[Array] | None = None,
) -> tuple[Any, Source]:
    """What a rule reads, and the source to go on with.

    Products for distances are those of the rows less a common point, centered ones
    those of the rows less their weighted mean. Both are taken about a row, never about
    a mean: one row far away takes a mean along, and the digits of all others with it.
    """
    reads = Reads(rule.reads)
    shifts = reads in (Reads.AFFINE, Reads.CENTERED)
    asked = Asked(Reads.GRAMIAN if shifts else reads, per_leaf, previous)
    scales = _scales(rule)
    rescale = (_OWN if _is_apart(rule) else Rescale(_scale)) if scales else None
    plain, source = source.inner(asked._replace(rescale=rescale))
    if not shifts:
        return plain, source
    if scales:
        asked = asked._replace(scale=jnp.asarray(source.seen.scale))
    less = lambda row: source.inner(asked._replace(about=row))[0]
    products = _around_a_row(plain, less, source.seen.roster)
    if reads == Reads.CENTERED:
        of_leaf = lambda gramian: _recentered(gramian, source.seen.roster)
        products = jax.vmap(of_leaf)(products) if per_leaf else of_leaf(products)
    return products, source


def scale_read(rule: Weighting | Mixing | Scaling, source: Source) -> Any:
    """What rows were multiplied by for the products that :func:`read_products` gave."""
    return source.seen.scale if _scales(rule) else 1.0


def _scales(rule: Weighting | Mixing | Scaling) -> bool:
    """Whether products are read that may be of rows at another scale."""
    of_these = (Reads.GRAMIAN, Reads.AFFINE, Reads.CENTERED, Reads.NORMS)
    return rule.degree is not None and rule.reads in of_these


def _is_apart(rule: Weighting | Mixing | Scaling) -> bool:
    """Whether each row is decided about by itself."""
    return not isinstance(rule, Mixing) and bool(rule.apart)


def _around_a_row(
    plain: Array, less: Callable[[Array], Array], roster: Roster
) -> Array:
    """Inner products of rows less a common point: zero, or one of the rows.

    Plain products serve where rows are about as far from each other as from zero; then
    factored rows stay factored. Otherwise the row is taken off that has half of the
    rows nearest around it. Leaves that decide for themselves all have to be so.

    Args:
      plain: inner products, (B, B) or one such for every leaf, perhaps bordered by one
        row more.
      less: index of a row, to the same of rows less this one.
      roster: which are there.
    """
    count, present = roster.weights.shape[0], roster.present
    half = jnp.minimum(num_present(present) // 2, count - 1)

    def reaches(gramian: Array) -> Array:  # squared, around which half of the rows are
        squares = squared_distances(gramian[:count, :count], present)
        return jnp.where(present, jnp.sort(squares, 1)[:, half], jnp.inf)

    row = jnp.argmin(reaches(plain if plain.ndim == 2 else plain.sum(0)))
    each = plain if plain.ndim == 3 else plain[None]
    coarse = jax.vmap(lambda g: g[row, row] > _COARSE * reaches(g)[row])(each)
    return lax.cond(jnp.any(coarse), lambda: less(row), lambda: plain)


def _own_scales(squares: Array, roster: Roster) -> Array:
    """For every row by itself a power of two that makes its square a float, (B,).

    One, unless that overflows, or is so small that digits are lost. Which of the two a
    row of zeros is does not show.
    """
    reach = jnp.finfo(squares.dtype).maxexp
    large = ~(squares < 2.0 ** (reach * 15 // 16))
    small = squares < 2.0 ** -(reach * 25 // 32)
    scales = jnp.where(small, 2.0 ** (reach * 5 // 8), 1)
    scales = jnp.where(large, 2.0 ** -(reach * 3 // 4), scales)
    return jnp.where(roster.present, scales, 1).astype(squares.dtype)


# From 1e-25 to 1e8 a norm at the start's scale has a square that tells all its digits,
# and from 1e-28 on one that is not 0.
_OWN = Rescale(_own_scales, 2.0**32)


def _scale(squares: Array, roster: Roster) -> Array:
    """A power of two that brings the rows' squared norms to where there are floats, ().

    One, unless half of the norms overflow, or all are so small that squares of
    differences would be lost: a row far away alone decides nothing, and rows of zeros
    do not either. A previous update that is not as small leaves it at one, too.
    """
    count, reach = roster.weights.shape[0], jnp.finfo(squares.dtype).maxexp
    squares, previous = squares[:count], squares[count:]
    large = roster.present & ~(squares < 2.0 ** (reach * 25 // 32))
    other = roster.present & ~large
    down = jnp.any(large) & (2 * num_present(large) >= num_present(roster.present))
    most = jnp.append(jnp.where(other, squares, 0), previous).max()
    up = jnp.any(other) & (most < 2.0 ** -(reach // 2))
    scale = jnp.where(up, 2.0 ** (reach * 5 // 8), 1)
    return jnp.where(down, 2.0 ** -(reach * 5 // 8), scale).astype(squares.dtype)


def _recentered(gramian: Array, roster: Roster) -> Array:
    """The Gramian of rows less their weighted mean; a bordering row has no weight."""
    extra = gramian.shape[0] - roster.weights.shape[0]
    shares = jnp.pad(roster.shares, (0, extra))
    present = jnp.pad(roster.present, (0, extra), constant_values=True)
    with_mean = jnp.matmul(gramian, shares, precision=lax.Precision.HIGHEST)
    mean = jnp.vdot(shares, with_mean, precision=lax.Precision.HIGHEST)
    centered = gramian - with_mean[:, None] - with_mean[None, :] + mean
    return jnp.where(present[:, None] & present[None, :], centered, 0)


def without_overflow(products: Any, roster: Roster, reads: str) -> tuple[Any, Roster]:
    """Takes rows out whose squared norm is not finite, as if they were absent."""
    if products is None:
        return products, roster
    count, size = roster.weights.shape[0], products.shape[0]
    if reads == Reads.TOWARD:
        sound = jnp.isfinite(products).all(0)[:count]
        weights = jnp.where(sound, roster.weights, 0)
        kept = jnp.append(sound, True)
        return jnp.where(kept, products, 0), roster._replace(weights=weights)
    squares = products if products.ndim == 1 else products.diagonal()
    sound = jnp.isfinite(squares[:count])
    every = jnp.pad(sound, (0, size - count), constant_values=True)
    kept = every if products.ndim == 1 else every[:, None] & every[None, :]
    weights = jnp.where(sound, roster.weights, 0)
    return jnp.where(kept, products, 0), roster._replace(weights=weights)
