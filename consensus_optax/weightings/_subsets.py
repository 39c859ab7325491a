"""The mean of the best subset of the rows, found by trying all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax

from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.distances import (
    SAME,
    num_present,
    rows_and_bad,
    shares_of,
)
from consensus_optax._rules.kinds import Roster
from consensus_optax._typing import Marked, Number, PerRow

_MOST_SUBSETS = 50_000
_SUBSETS_AT_ONCE = 256


def mean_of_best(
    score: Callable[[Marked], Number], roster: Roster, num_byzantine: int
) -> PerRow:
    """Weights of the mean of the n - f rows of least score, (B,).

    Of subsets with the same score the means are averaged.

    Args:
      score: from which rows are kept, (B,) bool, to a number >= 0, ().
      roster: who is there; its weights are what a mean is weighted by.
      num_byzantine: f, lowered to what the rows present allow.

    Raises:
      ValueError: when traced: too few rows, or too many subsets.
    """
    size, present = roster.weights.shape[0], roster.present
    _, bad = rows_and_bad(present, num_byzantine)
    left_out = jnp.asarray(_left_out(size, num_byzantine))

    def scored(out: Marked) -> Number:
        """The score of what is left; inf unless f present rows are out."""
        fair = ~jnp.any(out & ~present) & (num_present(out) == bad)
        return jnp.where(fair, score(present & ~out), jnp.inf)

    batch = min(_SUBSETS_AT_ONCE, left_out.shape[0])
    scores = lax.map(scored, left_out, batch_size=batch)
    best = scores <= scores.min() * (1 + SAME)
    masses = jnp.where(present[None, :] & ~left_out, roster.weights[None, :], 0)
    means = masses / positive_or_one(masses.sum(1, keepdims=True))
    return shares_of(jnp.where(best[:, None], means, 0).sum(0))


def _left_out(size: int, num_byzantine: int) -> np.ndarray:
    """All ways to leave up to f rows out, (subsets, B) bool."""
    counts = range(num_byzantine + 1)
    subsets = sum(math.comb(size, f) for f in counts)
    if subsets > _MOST_SUBSETS:
        raise ValueError(
            f"`num_byzantine` must leave at most {_MOST_SUBSETS} subsets to try; "
            f"{size} rows without {num_byzantine} are {subsets}. Use `co.krum`, or "
            f"`co.nearest_neighbor_mixing` before another rule."
        )
    left_out = np.zeros((subsets, size), bool)
    chosen = (itertools.combinations(range(size), f) for f in counts)
    for k, indices in enumerate(itertools.chain(*chosen)):
        left_out[k, list(indices)] = True
    return left_out
