"""Krum and Multi-Krum: the rows that are closest to most others."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.distances import (
    among_smallest,
    nearest_sums,
    rows_and_bad,
    shares_of,
    squared_distances,
)
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, PerRow


@named
def krum(num_byzantine: int, num_selected: int = 1) -> Reducer:
    r"""Krum, Multi-Krum: mean of the rows nearest to their n - f - 2 nearest others.

    Also known as: Multi-Krum.

    .. math:: s_i = \sum_{j \in N_i} \|g_i - g_j\|^2, \qquad
        u = \frac1m \sum_{i \in S} g_i

    :math:`N_i` are the n - f - 2 other rows nearest to row i, S the m rows of least
    score. As in the paper; other libraries differ: n - f - 1 others (byzfl), distances
    not squared (TorchJD).

    Guarantees: in the convex hull of the rows (with m = 1 and no tie, one of them); the
    order of the rows is irrelevant; shifting all rows shifts the update, scaling them
    scales it. A row is selected only if n - f - 2 others are as close to it as to the
    best honest row, so f arbitrary rows cannot take the update far from the honest
    ones.
    Edge cases: rows that tie for the last place share it equally. Fewer rows present
    than needed: f becomes the most that they allow, (n - 3) // 2 (which loses nothing
    if absent rows are arbitrary ones, as rows with an inf or a nan are), and m at most
    n - f. No row: zero, not ready.
    ``weights``: each row counts as one for the scores; those selected are averaged by
    weight.

    Args:
      num_byzantine: f, the largest number of arbitrary rows.
      num_selected: m, the rows averaged; 1 is Krum, more is Multi-Krum.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: an argument is no count; when traced, n >= 2f + 3 does not hold
        (every honest row must have a majority of honest nearest others), or
        m <= n - f does not (so many rows must be honest).

    Cost: one Gramian (two if rows are nearly equal), O(B^2 log B), one combination.

    References: Blanchard et al., `Byzantine-Tolerant Machine Learning
    <https://arxiv.org/abs/1703.02757>`_, 2017.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = krum(1), jnp.zeros(1)
      >>> rows = jnp.array([[1.], [2.], [3.5], [5.], [-90.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [2.0]
    """
    _check.count("num_byzantine", num_byzantine, minimum=0)
    _check.count("num_selected", num_selected)

    def weigh(products: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        size, f = roster.weights.shape[0], num_byzantine
        n, bad = rows_and_bad(roster.present, f, spare=3)
        _check.enough_rows(
            "num_selected", num_selected, size, f + num_selected, f"m <= n - f, {f=}"
        )
        squares = squared_distances(products, roster.present)
        scores = nearest_sums(squares, n - bad - 2)
        count = jnp.minimum(n - bad, num_selected)
        chosen = among_smallest(scores, count, roster.present)
        return shares_of(chosen * roster.weights), state

    return reducer(Weighting(weigh, reads=Reads.AFFINE, degree=0))
