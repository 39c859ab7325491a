"""MoNNA: the rows nearest to a trusted one."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.distances import (
    among_smallest,
    rows_and_bad,
    shares_of,
    squared_distances,
)
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, PerRow


@named
def monna(num_byzantine: int, index: int = 0) -> Reducer:
    r"""MoNNA: the mean of a trusted row and the n - f - 1 rows nearest to it.

    Also known as: nearest neighbor averaging.

    .. math:: u = \frac{1}{n - f} \sum_{i \in S} g_i

    where S are the n - f rows i of least :math:`\|g_i - g_t\|`, the trusted row t,
    say a worker's own in training without a server, among them. Unlike
    :func:`trusted_row` it looks at distances, not directions, and averages the trusted
    row in.

    Guarantees: in the convex hull of the rows; the order of the other rows is
    irrelevant; shifting all rows shifts the update, scaling them scales it, by any
    number. If at most f rows are arbitrary and the trusted row is honest, every row of
    S is as near to it as the farthest honest row, whatever the others are, and so is
    the update.
    Edge cases: ``num_byzantine=0`` is the mean. Rows that tie for the last place share
    it equally. The trusted row is absent: zero, not ready. Fewer than 2f + 1 rows
    present: f becomes (n - 1) // 2 (which loses nothing if absent rows are arbitrary
    ones, as rows with an inf or a nan are).
    ``weights``: each row counts as one for who is near; those of S are averaged by
    weight.

    Args:
      num_byzantine: f, the largest number of arbitrary rows.
      index: t, which row is trusted.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: an argument is no count; when traced, there is no such row, or n > 2f
        does not hold (the honest rows must be a majority).

    Cost: one Gramian (two if rows are nearly equal), one combination.

    References: Farhadkhani et al., `Robust Collaborative Learning with Linear Gradient
    Overhead <https://arxiv.org/abs/2209.10931>`_, 2022.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = monna(1), jnp.zeros(1)
      >>> rows = jnp.array([[1.], [3.], [-90.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [2.0]
    """
    _check.count("num_byzantine", num_byzantine, minimum=0)
    _check.count("index", index, minimum=0)

    def weigh(products: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        _check.row_index("index", index, roster.weights.shape[0])
        present = roster.present
        n, bad = rows_and_bad(present, num_byzantine)
        squares = squared_distances(products, present)
        near = among_smallest(squares[index], n - bad, present)
        masses = jnp.where(present[index], near * roster.weights, 0)
        return shares_of(masses), state

    return reducer(Weighting(weigh, reads=Reads.AFFINE, degree=0))
