"""Comparative gradient elimination: without the longest rows."""

from __future__ import annotations

from typing import Any

from consensus_optax import _check
from consensus_optax._rules.distances import among_smallest, rows_and_bad, shares_of
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import PerRow


@named
def comparative_elimination(num_byzantine: int) -> Reducer:
    r"""Comparative gradient elimination (CGE): mean of the n - f shortest rows.

    Also known as: CGE, comparative gradient elimination.

    .. math:: u = \frac{1}{n - f} \sum_{i \in S} g_i

    where S are the n - f rows of least norm over the whole model. (The paper adds them
    up; a mean keeps the learning rate that plain training has.)

    Guarantees: in the convex hull of the rows, and no longer than the longest of any
    n - f rows; the order of the rows is irrelevant; scaling all rows scales the update,
    by any number. It sees norms only: NOT shifted with the rows, and no help against
    rows that point elsewhere.
    Edge cases: ``num_byzantine=0`` is the mean. Rows that tie for the last place share
    it equally. Fewer than 2f + 1 rows present: f becomes (n - 1) // 2 (which loses
    nothing if absent rows are arbitrary ones, as rows with an inf or a nan are). No
    row: zero, not ready.
    ``weights``: each row counts as one for what is eliminated; the others are averaged
    by weight.

    Args:
      num_byzantine: f, the number of rows eliminated.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: ``num_byzantine`` is no count; when traced, n > 2f does not hold: no
        rule can tell the honest rows if they are no majority.

    Cost: the rows' norms and one combination; factored rows stay factored.

    References: Gupta et al., `Byzantine Fault-Tolerant Distributed Machine Learning
    Using Stochastic Gradient Descent (SGD) and Norm-Based Comparative Gradient
    Elimination (CGE) <https://arxiv.org/abs/2008.04699>`_, 2020.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = comparative_elimination(1), jnp.zeros(1)
      >>> rows = jnp.array([[1.], [2.], [-90.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [1.5]
    """
    _check.count("num_byzantine", num_byzantine, minimum=0)

    def weigh(squared_norms: PerRow, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        n, bad = rows_and_bad(roster.present, num_byzantine)
        kept = among_smallest(squared_norms, n - bad, roster.present)
        return shares_of(kept * roster.weights), state

    return reducer(Weighting(weigh, reads=Reads.NORMS, degree=0))
