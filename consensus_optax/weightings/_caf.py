"""CAF: rows that stand out along the widest direction count less, again and again."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._rows.varying import varying_like
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.distances import SAME, rows_and_bad, shares_of
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._rules.solvers import product
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Count, Flag, Gramian, Number, PerRow
from consensus_optax.weightings._covariance import about_mean, covariance


class _Filter(NamedTuple):
    """Counts of the rows, and those of the least variance so far with that."""

    counts: PerRow
    best: PerRow
    least: Number
    steps: Count


@named
def caf(num_byzantine: int) -> Reducer:
    r"""Covariance-bound agnostic filter: outliers along the widest direction fade out.

    Also known as: covariance-bound agnostic filter.

    .. math:: c_i \leftarrow c_i \Big(1 - \frac{\tau_i}{\max_{c_j > 0} \tau_j}\Big),
        \qquad \tau_i = \langle g_i - \mu_c, v\rangle^2, \qquad
        u = \mu_c = \frac{\sum_i c_i g_i}{\sum_i c_i}

    from c = 1 on, where v is the top eigenvector of the covariance of the rows counted
    by c. It goes on while :math:`\sum_i c_i > n - 2f`; the update is the mean of those
    counts whose covariance had the smallest top eigenvalue. No bound on the honest
    rows' covariance has to be known, and nothing is drawn at random.

    Everything is read from the Gramian: the covariance has its eigenvalues, and
    :math:`\tau` its eigenvectors.

    Differences from the code of byzfl:
      1. eigenvectors are exact; theirs takes one step of the power method from a random
         start;
      2. the largest :math:`\tau` is that of the rows that still count, so a step takes
         at least one of them out and there are at most n; theirs is that of all rows:
         beside a row 10^10 times as far away no count changes any more, and it does not
         end;
      3. of directions in which rows spread equally :math:`\tau` takes all together;
      4. ``num_byzantine=0`` is the mean; theirs has no answer.

    Guarantees: in the convex hull of the rows; the order of the rows is irrelevant;
    shifting all rows shifts the update, scaling them scales it, by any number.
    Edge cases: all rows equal: that row. Fewer than 2f + 1 rows present: f becomes
    (n - 1) // 2 (which loses nothing if absent rows are arbitrary ones, as rows with an
    inf or a nan are). No row: zero, not ready.
    ``weights``: each row counts as one for c; the mean is by c times weight.

    Args:
      num_byzantine: f, the largest number of arbitrary rows.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: ``num_byzantine`` is no count; when traced, n > 2f does not hold (the
        honest rows must be a majority).

    Cost: one Gramian (two if rows are nearly equal), an eigendecomposition of a [B, B]
    matrix for each step, n at the most and mostly about 2f, one combination.

    References: Allouah et al., `Towards Trustworthy Federated Learning with Untrusted
    Participants <https://arxiv.org/abs/2505.01874>`_, 2025.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = caf(1), jnp.zeros(1)
      >>> rows = jnp.array([[1.], [3.], [2.], [-90.]])
      >>> print(rule.update(rows, rule.init(params), params)[0].round(2))
      [1.99]
    """
    _check.count("num_byzantine", num_byzantine, minimum=0)

    def weigh(products: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        n, bad = rows_and_bad(roster.present, num_byzantine)
        enough = (n - 2 * bad).astype(products.dtype)

        def going_on(filtered: _Filter) -> Flag:
            much = (filtered.counts.sum() > enough) & (filtered.least > 0)
            return (filtered.steps == 0) | (much & (filtered.steps < n))

        def step(filtered: _Filter) -> _Filter:
            counts = filtered.counts
            around = about_mean(products, counts)
            matrix, variance = covariance(around, counts)
            values, vectors = jnp.linalg.eigh(matrix)  # ascending
            top = values[-1]
            wide = jnp.where(values[None, :] >= top * (1 - SAME), vectors, 0)
            roots = jnp.sqrt(shares_of(counts))
            along = product(around, roots[:, None] * wide)  # (B, directions)
            along = jnp.where(counts[:, None] > 0, along, 0)
            scores = ((along / positive_or_one(jnp.abs(along).max())) ** 2).sum(1)
            largest = scores.max()
            left = counts * (1 - scores / positive_or_one(largest))
            left = jnp.where(scores < largest, left, 0)  # 1 - x / x rounds, compiled
            value = jnp.maximum(top, 0) * variance
            better = value < filtered.least * (1 - SAME)
            return _Filter(
                left,
                jnp.where(better, counts, filtered.best),
                jnp.where(better, value, filtered.least),
                filtered.steps + 1,
            )

        ones = roster.present.astype(products.dtype)
        start = _Filter(ones, ones, jnp.full((), jnp.inf, ones.dtype), jnp.int32(0))
        start = varying_like(start, products, roster.weights)
        end = lax.while_loop(going_on, step, start)
        return shares_of(end.best * roster.weights), state

    return reducer(Weighting(weigh, reads=Reads.AFFINE, degree=0))
