"""Distances of rows and what robust rules make of them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._typing import Count, Gramian, Marked, PerRow

# Scores that differ by less are one: two rows in the same position come out equal to
# rounding, and which of them is a little less depends on the order of the rows.
SAME = 1e-5


def squared_distances(products: Gramian, present: Marked) -> Gramian:
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


def num_present(present: Marked) -> Count:
    """n, () int32."""
    return jnp.sum(present, dtype=jnp.int32)


def rows_and_bad(
    present: Marked,
    num_byzantine: int,
    *,
    each: int = 2,
    spare: int = 1,
    name: str = "num_byzantine",
) -> tuple[Count, Count]:
    """Rows present, n, and how many of them may be arbitrary: f, or what n allows.

    Args:
      present: (B,) bool.
      num_byzantine: f.
      each: honest and other rows that the rule needs for each arbitrary one.
      spare: rows that it needs besides: n >= each f + spare.
      name: of the argument f, for an error.

    Raises:
      ValueError: when traced: the stack is smaller than that.
    """
    bound = f"n >= {each}f + {spare}" if spare > 1 else f"n > {each}f"
    minimum = each * num_byzantine + spare
    _check.enough_rows(name, num_byzantine, present.shape[0], minimum, bound)
    n = num_present(present)
    return n, allowed(n, num_byzantine, each, spare)


def allowed(n: Any, num_byzantine: int, each: int = 2, spare: int = 1) -> Any:
    """The largest f <= num_byzantine with n >= each f + spare; n known or traced."""
    most = (n - spare) // each
    if isinstance(n, int):
        return max(0, min(most, num_byzantine))
    return jnp.clip(most, 0, num_byzantine)


def among_smallest(
    scores: PerRow, count: Count | int, present: Marked, same: float = 0.0
) -> PerRow:
    """How far each row belongs to the ``count`` of least score, in [0, 1], (B,).

    1 or 0, except that rows whose scores tie for the last places share these, so that
    the order of the rows cannot matter. Scores are not negative; what they differ by
    besides is rounding, up to ``same``.
    """
    ranked = jnp.sort(jnp.where(present, scores, jnp.inf))
    last = ranked[jnp.clip(count - 1, 0, scores.shape[0] - 1)]
    inside = present & (scores < last * (1 - SAME) - same)
    tied = present & ~inside & (scores <= last * (1 + SAME) + same)
    places = count - num_present(inside)
    share = places.astype(scores.dtype) / jnp.maximum(num_present(tied), 1).astype(
        scores.dtype
    )
    return jnp.where(inside, 1, jnp.where(tied, jnp.clip(share, 0, 1), 0))


def first_of_least(scores: PerRow, present: Marked) -> Count:
    """Index of the first row whose score is the least, () int.

    To rounding: what another order of summation changes decides nothing.
    """
    known = jnp.minimum(scores, jnp.finfo(scores.dtype).max)  # a row on its own: inf
    least = jnp.min(jnp.where(present, known, jnp.inf))
    return jnp.argmax(present & (known <= least * (1 + SAME)))


def nearest_sums(squares: Gramian, count: Count | int) -> PerRow:
    """Sum of the squared distances to the ``count`` nearest OTHER rows, (B,)."""
    size = squares.shape[0]
    others = jnp.where(jnp.eye(size, dtype=bool), jnp.inf, squares)
    ranks = jnp.arange(size, dtype=jnp.int32)[None, :]
    return jnp.where(ranks < count, jnp.sort(others, 1), 0).sum(1)


def shares_of(masses: PerRow) -> PerRow:
    """Masses (>= 0) divided by their sum; all 0 if they are."""
    total = masses.sum()
    return masses / positive_or_one(total)
