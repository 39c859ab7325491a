"""Bulyan: Krum's choice again and again, then a mean around the median."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._rules.distances import (
    allowed,
    first_of_least,
    nearest_sums,
    num_present,
    rows_and_bad,
    squared_distances,
)
from consensus_optax._rules.kinds import Among, Columns, Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, Gramian, PerRow
from consensus_optax.columns._mean_around_median import nearest_mean


@named
def bulyan(num_byzantine: int) -> Reducer:
    r"""Bulyan of Krum: select n - 2f rows one by one, then average around the median.

    Also known as: Bulyan of Krum.

    .. math:: u_p = \frac{1}{\theta - 2f} \sum_{i \in N_p} g_{ip}, \qquad
        \theta = n - 2f

    :math:`N_p` are the theta - 2f rows nearest the median at coordinate p, among theta
    rows selected so: of the m rows left, take the one with the least sum of squared
    distances to its m - f - 2 nearest others, theta times. Two differences from the
    letter of the paper:

      1. towards the end m - f - 2 may fall below 1: the nearest other is taken;
      2. of scores equal to rounding the first row is taken; the paper says arbitrarily.

    Guarantees: shifting all rows shifts the update, scaling them scales it, by any
    number; the order of the rows is irrelevant, but for equal scores of different rows.
    Each coordinate is near the median of selected rows, most of them honest: no
    arbitrary row can hide a large change of one coordinate in a small distance, as it
    can from Krum.
    Edge cases: ``num_byzantine=0`` is the mean. Fewer rows present than needed: f
    becomes the most that they allow (which loses nothing if absent rows are arbitrary
    ones, as rows with an inf or a nan are): (n - 3) // 4 for the choice and theta, and
    (theta - 3) // 2, which is no less, around the median. No row: zero, not ready. The
    update need not lie in the convex hull of the rows.
    ``weights``: each row counts as one; those averaged are averaged by weight.

    Args:
      num_byzantine: f, the largest number of arbitrary rows.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: ``num_byzantine`` is no count; when traced, n >= 4f + 3 does not hold
        (Krum's bound 2f + 3, for what is left after 2f rows were taken).

    Cost: one Gramian (two if rows are nearly equal), B sorts of a (B, B) matrix, then
    that of :func:`mean_around_median`.

    References: El Mhamdi et al., `The Hidden Vulnerability of Distributed Learning in
    Byzantium <https://arxiv.org/abs/1802.07927>`_, 2018.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = bulyan(1), jnp.zeros(1)
      >>> rows = jnp.array([[1.], [2.], [3.], [4.5], [6.5], [9.], [-90.]])
      >>> print(rule.update(rows, rule.init(params), params)[0].round(3))
      [3.167]
    """
    _check.count("num_byzantine", num_byzantine, minimum=0)

    def select(products: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        size = roster.weights.shape[0]
        n, bad = rows_and_bad(roster.present, num_byzantine, each=4, spare=3)
        theta = n - 2 * bad
        squares = squared_distances(products, roster.present)

        def take(index: Array, left: Array) -> Array:
            """``left`` without the best of the rows left, while theta are not taken."""
            pairs = left[:, None] & left[None, :]
            nearest = jnp.maximum(num_present(left) - bad - 2, 1)
            scores = nearest_sums(jnp.where(pairs, squares, jnp.inf), nearest)
            best = jnp.arange(size) == first_of_least(scores, left)
            return left & ~(best & (index < theta))

        left = lax.fori_loop(0, size, take, roster.present)
        return (roster.present & ~left).astype(roster.weights.dtype), state

    def around(stack: Array, weights: Array) -> Array:
        """The mean of all but 2f selected rows, which move to a smaller stack first."""
        theta = num_present(weights > 0)
        bad = allowed(theta, num_byzantine, spare=3)  # f if n >= 4f + 3
        # Of 4f + 2 rows present, one less than needed, 2f + 4 are selected.
        most = max(stack.shape[0] - 2 * num_byzantine, 2 * num_byzantine + 4)
        size = min(most, stack.shape[0])
        first = jnp.argsort(weights <= 0, stable=True)[:size]
        return nearest_mean(stack[first], weights[first], 2 * bad, 2 * num_byzantine)

    return reducer(
        Among(Weighting(select, reads=Reads.AFFINE, degree=0), Columns(around))
    )
