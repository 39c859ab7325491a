"""SMEA: the subset of the rows that spreads least along its widest direction."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, Marked, Number, PerRow
from consensus_optax.weightings._covariance import about_mean, covariance
from consensus_optax.weightings._subsets import mean_of_best


@named
def smea(num_byzantine: int) -> Reducer:
    r"""Smallest maximum eigenvalue averaging: the mean of the least spread n - f rows.

    Also known as: smallest maximum eigenvalue averaging.

    .. math:: u = \frac{1}{n - f} \sum_{i \in S} g_i, \qquad
        S = \arg\min_{|S| = n - f}\ \lambda_{\max}\Big(\frac{1}{n - f}
        \sum_{i \in S} (g_i - \mu_S)(g_i - \mu_S)^T\Big)

    All ways to leave up to f rows out are tried, so it is for few rows. The covariance
    of a subset has the eigenvalues of its centred Gramian, so nothing of the size of
    the parameters is needed. (The code of byzfl takes one step of the power method from
    a random start for :math:`\lambda_{\max}`: its answer changes from call to call.)

    Guarantees: in the convex hull of the rows; the order of the rows is irrelevant;
    shifting all rows shifts the update, scaling them scales it, by any number. Of any
    n - f rows with mean :math:`\mu` and largest eigenvalue :math:`\lambda`, whatever
    the f others are, with weights all 1:
    :math:`\|u - \mu\| \le 2 \sqrt{f \lambda / (n - 2f)}`.
    Edge cases: ``num_byzantine=0`` is the mean. Of subsets with the same eigenvalue the
    means are averaged. Fewer than 2f + 1 rows present: f becomes (n - 1) // 2 (which
    loses nothing if absent rows are arbitrary ones, as rows with an inf or a nan are).
    No row: zero, not ready.
    ``weights``: each row counts as one for the covariance; those of S are averaged by
    weight.

    Args:
      num_byzantine: f, the largest number of arbitrary rows.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: ``num_byzantine`` is no count; when traced, n > 2f does not hold (the
        honest rows must be a majority), or there are more than 50000 subsets.

    Cost: one Gramian (two if rows are nearly equal), the eigenvalues of a [B, B] matrix
    for each subset, one combination.

    References: Allouah et al., `On the Privacy-Robustness-Utility Trilemma in
    Distributed Learning <https://arxiv.org/abs/2302.04787>`_, 2023.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = smea(1), jnp.zeros(1)
      >>> rows = jnp.array([[1.], [3.], [-90.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [2.0]
    """
    _check.count("num_byzantine", num_byzantine, minimum=0)

    def weigh(products: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        def spread(kept: Marked) -> Number:
            """The largest eigenvalue of the covariance of the rows kept."""
            ones = kept.astype(products.dtype)
            inside = jnp.where(kept[:, None] & kept[None, :], products, 0)
            matrix, variance = covariance(about_mean(inside, ones), ones)
            return jnp.maximum(jnp.linalg.eigvalsh(matrix)[-1], 0) * variance

        return mean_of_best(spread, roster, num_byzantine), state

    return reducer(Weighting(weigh, reads=Reads.AFFINE, degree=0))
