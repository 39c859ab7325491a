"""Inner products for distances: right to rounding, whatever a few rows hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._rules.distances import num_present, squared_distances
from consensus_optax._rules.kinds import Roster
from consensus_optax._typing import Array

# A distance is a difference of squared norms. Where these are larger than its square by
# more than this factor, too many digits are lost.
_COARSE = 30.0


def around_a_row(plain: Array, less: Callable[[Array], Array], roster: Roster) -> Array:
    """Inner products of rows less a common point: zero, or one of the rows.

    Plain products serve where rows are about as far from each other as from zero; then
    factored rows stay factored. Otherwise the row is taken off that has half of the
    rows nearest around it. A mean would be no such point: one row far away takes it
    along, and with it the digits of all other rows' distances.

    Args:
      plain: inner products, (B, B) or one such for every leaf, perhaps bordered by one
        row more.
      less: shares (B,) to the same of rows less the mean with these shares.
      roster: which are there.
    """
    count = roster.weights.shape[0]
    total = (plain if plain.ndim == 2 else plain.sum(0))[:count, :count]
    squares = squared_distances(total, roster.present)
    half = jnp.minimum(num_present(roster.present) // 2, count - 1)
    reach = jnp.where(roster.present, jnp.sort(squares, 1)[:, half], jnp.inf)
    row = jnp.argmin(reach)
    coarse = total[row, row] > _COARSE * reach[row]
    shares = jax.nn.one_hot(row, count, dtype=total.dtype)
    return lax.cond(coarse, lambda: less(shares), lambda: plain)


def without_overflow(products: Any, roster: Roster) -> tuple[Any, Roster]:
    """Takes rows out whose squared norm is not finite, as if they were absent."""
    if products is None:
        return products, roster
    count, size = roster.weights.shape[0], products.shape[0]
    squares = products if products.ndim == 1 else products.diagonal()
    sound = jnp.isfinite(squares[:count])
    every = jnp.pad(sound, (0, size - count), constant_values=True)
    kept = every if products.ndim == 1 else every[:, None] & every[None, :]
    weights = jnp.where(sound, roster.weights, 0)
    return jnp.where(kept, products, 0), roster._replace(weights=weights)
