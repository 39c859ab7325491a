"""Minimum-diameter averaging: the tightest subset of the rows."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from consensus_optax import _check
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.distances import (
    SAME,
    num_present,
    rows_and_bad,
    shares_of,
    squared_distances,
)
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, Gramian, PerRow

_MOST_SUBSETS = 50_000
_SUBSETS_AT_ONCE = 256


@named
def minimum_diameter(num_byzantine: int) -> Reducer:
    r"""Minimum-diameter averaging (MDA): the mean of the tightest n - f rows.

    Also known as: MDA, minimum-diameter averaging.

    .. math:: u = \frac{1}{n - f} \sum_{i \in S} g_i, \qquad
        S = \arg\min_{|S| = n - f}\ \max_{i, j \in S} \|g_i - g_j\|

    All ways to leave up to f rows out are tried, so it is for few rows.

    Guarantees: in the convex hull of the rows; the order of the rows is irrelevant;
    shifting all rows shifts the update, scaling them scales it, by any number. If at
    most f rows are arbitrary, S has an honest row and no larger diameter than the
    honest rows, so the update is within their diameter of one of them.
    Edge cases: ``num_byzantine=0`` is the mean. Of subsets with the same diameter the
    means are averaged. Fewer than 2f + 1 rows present: f becomes (n - 1) // 2 (which
    loses nothing if absent rows are arbitrary ones, as rows with an inf or a nan are).
    No row: zero, not ready.
    ``weights``: each row counts as one for the diameter; those of S are averaged by
    weight.

    Args:
      num_byzantine: f, the largest number of arbitrary rows.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: ``num_byzantine`` is no count; when traced, n > 2f does not hold (the
        honest rows must be a majority), or there are more than 50000 subsets.

    Cost: one Gramian (two if rows are nearly equal), B^2 comparisons for each subset,
    one combination.

    References: El-Mhamdi et al., `Genuinely Distributed Byzantine Machine Learning
    <https://arxiv.org/abs/1905.03853>`_, 2020.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = minimum_diameter(1), jnp.zeros(1)
      >>> rows = jnp.array([[1.], [3.], [-90.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [2.0]
    """
    _check.count("num_byzantine", num_byzantine, minimum=0)

    def weigh(products: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        size = roster.weights.shape[0]
        present = roster.present
        _, bad = rows_and_bad(present, num_byzantine)
        subsets = sum(math.comb(size, f) for f in range(num_byzantine + 1))
        if subsets > _MOST_SUBSETS:
            raise ValueError(
                f"`num_byzantine` must leave at most {_MOST_SUBSETS} subsets to try; "
                f"{size} rows without {num_byzantine} are {subsets}. Use `co.krum`, or "
                f"`co.nearest_neighbor_mixing` before another rule."
            )
        squares = squared_distances(products, present)
        left_out = np.zeros((subsets, size), bool)
        chosen = (
            itertools.combinations(range(size), f) for f in range(num_byzantine + 1)
        )
        for k, indices in enumerate(itertools.chain(*chosen)):
            left_out[k, list(indices)] = True

        def diameter(out: Array) -> Array:
            """Squared diameter of what is left; inf unless f present rows are out."""
            kept = present & ~out
            pairs = kept[:, None] & kept[None, :]
            widest = jnp.where(pairs, squares, 0).max()
            fair = ~jnp.any(out & ~present) & (num_present(out) == bad)
            return jnp.where(fair, widest, jnp.inf)

        out = jnp.asarray(left_out)
        batch = min(_SUBSETS_AT_ONCE, subsets)
        diameters = lax.map(diameter, out, batch_size=batch)
        tightest = diameters <= diameters.min() * (1 + SAME)
        masses = jnp.where(present[None, :] & ~out, roster.weights[None, :], 0)
        sums = masses.sum(1, keepdims=True)
        means = masses / positive_or_one(sums)
        return shares_of(jnp.where(tightest[:, None], means, 0).sum(0)), state

    return reducer(Weighting(weigh, reads=Reads.AFFINE, degree=0))
