"""The step near the mean that does best by the row it helps least."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import root
from consensus_optax._rules.distances import shares_of
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import (
    SolverState,
    cancels,
    length_of,
    not_better,
    over_simplex,
    product,
    proven,
    ratio,
    unsolved,
)
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, Number, PerRow, Threshold
from consensus_optax.weightings import _preference
from consensus_optax.weightings._preference import Preference


@named
def cagrad(
    c: Threshold = 0.5, preference: Preference | None = None, clip: bool = False
) -> Reducer:
    r"""CAGrad: in a ball around the mean, the step whose least gain is largest.

    Also known as: CAGrad, conflict-averse, CAGrad-Clip, RACO.

    .. math:: u = \arg\max_{\|d - \bar g\| \le c \|\bar g\|} \min_i \langle g_i, d
        \rangle = \bar g + c \|\bar g\| \frac{J^T \lambda}{\|J^T \lambda\|}, \qquad
        \lambda = \arg\min_{\lambda \ge 0,\ \sum_i \lambda_i = 1}
        \langle \bar g, J^T \lambda\rangle + c \|\bar g\| \|J^T \lambda\|

    With ``preference`` p the mean is :math:`\bar g = \sum_i p_i g_i / \sum_i p_i`. With
    ``clip`` (RACO) no row counts for more in the correction than it does there:
    :math:`\lambda_i` is replaced by :math:`\min(\lambda_i, p_i)`, so that a row that
    conflicts does not get what another was to have.

    Differences from the authors' code:
      1. theirs divides the update by 1 + c^2 (an option there); the learning rate can;
      2. where :math:`J^T \lambda` or u is 0 to rounding (7e-4 of the rows it is made of
         in float32, 1e-4 in float64) the update is zero; theirs adds 1e-8 to a divisor;
      3. a zero row, which no step helps, is left out of the least gain;
      4. with ``clip`` the mean is not corrected where :math:`J^T \lambda` is 0, since
         many :math:`\lambda` are then as good.

    Guarantees: :math:`\|u - \bar g\| \le c \|\bar g\|`; with c >= 1 and without
    ``clip`` no row is opposed beyond rounding, however unequal the rows' lengths, where
    ``converged``; the order of the rows is irrelevant; scaling all rows scales it.
    Edge cases: c = 0: the mean. One row, or all equal: (1 + c) times that row. Rows
    that cancel, also some of them alone (a Pareto-stationary point): zero, not ready,
    unless c is so near 1 that a step across the others is left; with ``clip`` only
    where the mean is zero, or corrected away.
    Derivatives of the update take its weights as constants.
    ``weights``: sample counts of the mean: a row of weight 2 is two equal rows.

    Args:
      c: radius of the ball relative to the mean's length, >= 0: a number, array or
        schedule.
      preference: (B,) numbers >= 0; rows count in the mean as preference times weight
        over the mean weight, scaled to sum 1. None: equal.
      clip: whether the correction is clipped at the preference.

    Returns:
      A :class:`Reducer` with ``residual`` and ``converged`` in its state.

    Raises:
      ValueError: a static argument is out of range; when traced, ``preference`` is not
        (B,).

    Cost: one Gramian, ten to twenty Cholesky factors of [B, B], one combination.

    References: Liu et al., `Conflict-Averse Gradient Descent for Multi-task Learning
    <https://arxiv.org/abs/2110.14048>`_, 2021; Chen et al., `Reward-free Alignment for
    Conflicting Objectives <https://arxiv.org/abs/2602.02495>`_, 2026 (clipped).

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = cagrad(1.0), jnp.zeros(2)
      >>> rows = jnp.array([[2., 0.], [0., 2.]])
      >>> update, state = rule.update(rows, rule.init(params), params)
      >>> print([round(float(x), 3) for x in update], state.rule_state.converged)
      [2.0, 2.0] True
    """
    _check.interval("c", c, 0)
    _preference.check(preference)
    _check.flag("clip", clip)

    def weigh(
        gramian: Gramian, roster: Roster, state: SolverState
    ) -> tuple[PerRow, SolverState]:
        del state
        mean = shares_of(_preference.weighted(preference, roster))
        with_mean = product(gramian, mean)  # <g_i, mean>, (B,)
        mean_square = jnp.maximum(product(mean, with_mean), 0)
        relative = _check.value_at(c, roster.step, gramian.dtype)
        radius = relative * root(mean_square)
        moving = roster.present & (gramian.diagonal() > 0)
        worst, new_state = over_simplex(gramian, moving, with_mean, radius)
        cancel = cancels(gramian, worst)  # so no step has a gain for every row
        length = length_of(gramian, worst)
        step = mean + ratio(radius, length) * worst
        least = product(with_mean, worst) + radius * length
        missing = jnp.where(moving, least - product(gramian, step), 0)
        new_state = not_better(new_state, _shortfall(gramian, step, missing, least))
        nothing = cancel
        if clip:
            worst, nothing = jnp.minimum(worst, mean), jnp.bool_(False)
            worst = jnp.where(cancel | cancels(gramian, worst), 0, worst)
        weights = mean + ratio(radius, length_of(gramian, worst)) * worst
        nothing = (relative > 0) & (nothing | cancels(gramian, weights))
        return jnp.where(nothing, 0, weights), proven(new_state, cancel)

    return reducer(Weighting(weigh, unsolved, degree=0))


def _shortfall(
    gramian: Gramian, weights: PerRow, missing: PerRow, least: Number
) -> Number:
    """By how much any row gains less than the dual says that all can, without units.

    No lambda says less than the best step gives, and the best step gives every row what
    the best lambda says: so this judges the step itself.
    """
    lengths = root(gramian.diagonal())
    size = lengths * product(jnp.abs(weights), lengths)
    return jnp.max(ratio(missing, jnp.abs(least) + size), initial=0)
