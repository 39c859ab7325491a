"""MoCo: weights that follow the least-norm ones, a small step at a time."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import product
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, PerRow, Threshold
from consensus_optax.weightings._task_weights import (
    TaskWeightsState,
    among_present,
    moved,
    stepped,
    uniform,
)


@named
def moco(
    num_rows: int, learning_rate: Threshold = 0.1, regularization: Threshold = 0.0
) -> Reducer:
    r"""MoCo: task weights kept from step to step, moved towards the least norm.

    Also known as: multi-objective gradient correction.

    .. math:: \lambda \leftarrow \Pi_\Delta\big(\lambda - \gamma (G + \rho I)
        \lambda\big), \qquad u = J^T \lambda

    One projected gradient step on :math:`\|J^T \lambda\|^2 / 2` where :func:`mgda`
    solves it: noise of one batch moves the weights by :math:`\gamma` of it only. The
    paper takes J from a running estimate of each row, which costs K copies of the
    parameters whatever the engine, so it is a piece of its own:
    ``optax.chain(co.row_momentum(1 - beta, num_rows), co.moco(num_rows))``.

    Differences from the code in LibMTL: the weights are projected on the simplex, as in
    the paper, instead of by a softmax; rows are not scaled to their losses
    (``co.scale_examples`` can); :math:`\gamma` does not fall by itself (a schedule
    can).

    Guarantees: in the convex hull of the rows; :math:`\gamma = 0`: the mean; the order
    of the rows is irrelevant if the state's goes along. Not scale-free: :math:`\gamma`
    is in units of one over a squared length.
    Edge cases: an absent row is left out and keeps its weight; the others share theirs
    as before, scaled to sum 1. One row: that row. No row: zero, not ready.
    ``weights``: which rows are there.

    Args:
      num_rows: B, since the state holds one weight a row.
      learning_rate: :math:`\gamma` >= 0: a number, array or schedule.
      regularization: :math:`\rho` >= 0, towards equal weights: a number, array or
        schedule.

    Returns:
      A :class:`Reducer` with ``coefficients`` in its state.

    Raises:
      ValueError: an argument is out of range; when traced, a stack of another number of
        rows.

    Cost: one Gramian, one combination.

    References: Fernando et al., `Mitigating Gradient Bias in Multi-objective Learning:
    A Provably Convergent Stochastic Approach <https://arxiv.org/abs/2210.12624>`_, 2022
    (Algorithm 1).

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = moco(num_rows=2), jnp.zeros(2)
      >>> rows, state = jnp.array([[1., 0.], [0., 2.]]), rule.init(params)
      >>> for _ in range(50):
      ...     update, state = rule.update(rows, state, params)
      >>> print([round(float(x), 3) for x in update])
      [0.8, 0.4]
    """
    _check.count("num_rows", num_rows)
    _check.interval("learning_rate", learning_rate, 0)
    _check.interval("regularization", regularization, 0)

    def weigh(
        gramian: Gramian, roster: Roster, state: TaskWeightsState
    ) -> tuple[PerRow, TaskWeightsState]:
        _check.rows_expected(num_rows, roster.weights.shape[0])
        present = roster.present
        weights, mass = among_present(state, present)
        gamma = _check.value_at(learning_rate, roster.step, gramian.dtype)
        rho = _check.value_at(regularization, roster.step, gramian.dtype)
        slope = product(gramian, weights) + rho * weights
        weights = stepped(weights, slope, gamma, present)
        return jnp.where(present, weights, 0), moved(state, present, mass, weights)

    return reducer(Weighting(weigh, uniform(num_rows)))
