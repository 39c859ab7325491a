"""Distances of rows and what robust rules make of them."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._typing import Array

# Scores that differ by less are one: two rows in the same position come out equal to
# rounding, and which of them is a little less depends on the order of the rows.
_SAME = 1e-5


def squared_distances(products: Array, present: Array) -> Array:
    """Squared distances of all pairs, (B, B): 0 to itself, inf to an absent row.

    Args:
      products: inner products of the rows less some common point, (B, B).
      present: (B,) bool.
    """
    norms = products.diagonal()
    squares = jnp.maximum(norms[:, None] + norms[None, :] - 2 * products, 0)
    squares = jnp.where(jnp.eye(norms.shape[0], dtype=bool), 0, squares)
    known = jnp.isfinite(squares) & present[:, None] & present[None, :]
    return jnp.where(known, squares, jnp.inf)


def num_present(present: Array) -> Array:
    """n, () int32."""
    return jnp.sum(present, dtype=jnp.int32)


def among_smallest(scores: Array, count: Array | int, present: Array) -> Array:
    """How far each row belongs to the ``count`` of least score, in [0, 1], (B,).

    1 or 0, except that rows whose scores tie for the last places share these, so that
    the order of the rows cannot matter. Scores are not negative.
    """
    ranked = jnp.sort(jnp.where(present, scores, jnp.inf))
    last = ranked[jnp.clip(count - 1, 0, scores.shape[0] - 1)]
    inside = present & (scores < last * (1 - _SAME))
    tied = present & ~inside & (scores <= last * (1 + _SAME))
    places = count - num_present(inside)
    share = places.astype(scores.dtype) / jnp.maximum(num_present(tied), 1).astype(
        scores.dtype
    )
    return jnp.where(inside, 1, jnp.where(tied, jnp.clip(share, 0, 1), 0))


def nearest_sums(squares: Array, count: Array | int) -> Array:
    """Sum of the squared distances to the ``count`` nearest OTHER rows, (B,)."""
    size = squares.shape[0]
    others = jnp.where(jnp.eye(size, dtype=bool), jnp.inf, squares)
    ranks = jnp.arange(size, dtype=jnp.int32)[None, :]
    return jnp.where(ranks < count, jnp.sort(others, 1), 0).sum(1)


def shares_of(masses: Array) -> Array:
    """Masses (>= 0) divided by their sum; all 0 if they are."""
    total = masses.sum()
    return masses / positive_or_one(total)
