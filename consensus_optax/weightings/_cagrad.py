"""The step near the mean that does best by the row it helps least."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import (
    SolverState,
    cancels,
    length_of,
    over_simplex,
    product,
    proven,
    ratio,
    unsolved,
)
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, PerRow, Threshold


@named
def cagrad(c: Threshold = 0.5) -> Reducer:
    r"""CAGrad: in a ball around the mean, the step whose least gain is largest.

    Also known as: CAGrad, conflict-averse.

    .. math:: u = \arg\max_{\|d - \bar g\| \le c \|\bar g\|} \min_i \langle g_i, d
        \rangle = \bar g + c \|\bar g\| \frac{J^T \lambda}{\|J^T \lambda\|}, \qquad
        \lambda = \arg\min_{\lambda \ge 0,\ \sum_i \lambda_i = 1}
        \langle \bar g, J^T \lambda\rangle + c \|\bar g\| \|J^T \lambda\|

    Differences from the authors' code:
      1. theirs divides the update by 1 + c^2 (an option there); the learning rate can;
      2. where :math:`J^T \lambda` or u is 0 to rounding (7e-4 of the rows it is made of
         in float32, 1e-4 in float64) the update is zero; theirs adds 1e-8 to a divisor;
      3. a zero row, which no step helps, is left out of the least gain.

    Guarantees: :math:`\|u - \bar g\| \le c \|\bar g\|`; with c >= 1 no row is opposed;
    the order of the rows is irrelevant; scaling all rows scales it.
    Edge cases: c = 0: the mean. One row, or all equal: (1 + c) times that row. Rows
    that cancel, also some of them alone (a Pareto-stationary point): zero, not ready,
    unless c is so near 1 that a step across the others is left.
    ``weights``: sample counts of the mean: a row of weight 2 is two equal rows.

    Args:
      c: radius of the ball relative to the mean's length, >= 0: a number, array or
        schedule.

    Returns:
      A :class:`Reducer` with ``residual`` and ``converged`` in its state.

    Raises:
      ValueError: a static argument is out of range.

    Cost: one Gramian, ten to twenty Cholesky factors of [B, B], one combination.

    References: Liu et al., `Conflict-Averse Gradient Descent for Multi-task Learning
    <https://arxiv.org/abs/2110.14048>`_, 2021.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = cagrad(1.0), jnp.zeros(2)
      >>> rows = jnp.array([[2., 0.], [0., 2.]])
      >>> update, state = rule.update(rows, rule.init(params), params)
      >>> print([round(float(x), 3) for x in update], state.rule_state.converged)
      [2.0, 2.0] True
    """
    _check.interval("c", c, 0)

    def weigh(
        gramian: Gramian, roster: Roster, state: SolverState
    ) -> tuple[PerRow, SolverState]:
        del state
        with_mean = product(gramian, roster.shares)  # <g_i, mean>, (B,)
        mean_square = jnp.maximum(product(roster.shares, with_mean), 0)
        relative = _check.value_at(c, roster.step, gramian.dtype)
        radius = relative * jnp.sqrt(mean_square)
        moving = roster.present & (gramian.diagonal() > 0)
        worst, new_state = over_simplex(gramian, moving, with_mean, radius)
        weights = roster.shares + ratio(radius, length_of(gramian, worst)) * worst
        cancel = cancels(gramian, worst)  # so no step has a gain for every row
        nothing = (relative > 0) & (cancel | cancels(gramian, weights))
        return jnp.where(nothing, 0, weights), proven(new_state, cancel)

    return reducer(Weighting(weigh, unsolved, degree=0))
