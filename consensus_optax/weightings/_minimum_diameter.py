"""Minimum-diameter averaging: the tightest subset of the rows."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.distances import squared_distances
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, Marked, Number, PerRow
from consensus_optax.weightings._subsets import mean_of_best


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
        squares = squared_distances(products, roster.present)

        def diameter(kept: Marked) -> Number:
            """Squared."""
            pairs = kept[:, None] & kept[None, :]
            return jnp.where(pairs, squares, 0).max()

        return mean_of_best(diameter, roster, num_byzantine), state

    return reducer(Weighting(weigh, reads=Reads.AFFINE, degree=0))
