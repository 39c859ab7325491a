"""Fair allocation of the step's gains among rows."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import SolverState, cancels, fair_division, unsolved
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, PerRow, Threshold
from consensus_optax.weightings._preference import relative_weights


@named
def fairgrad(alpha: Threshold = 2.0) -> Reducer:
    r"""FairGrad: the step whose gains are divided alpha-fairly among the rows.

    Also known as: FairGrad, fair.

    .. math:: u = J^T \lambda, \qquad
        (G \lambda)_i = (w_i / \lambda_i)^{1 / \alpha} \quad\text{for all } i

    It maximises :math:`\sum_i w_i \langle g_i, u\rangle^{1 - \alpha} / (1 - \alpha)`
    over steps of its length. alpha = 0: the mean; 1: proportional, the direction of
    :func:`nash_mtl`; 2: the least harmonic mean of gains; to infinity: the least gain.

    Difference from the authors' code: the equations are solved by Newton's method on
    the scaled problem, from that of alpha = 1 on; theirs gives the unscaled one to a
    least-squares solver.

    Guarantees: where ``converged`` every row gains, to rounding: by as little as others
    have to, where alpha is small; the order of the rows is irrelevant. Scaling all rows
    by s scales u by :math:`s^{(1 - \alpha) / (1 + \alpha)}`, so a learning rate for SGD
    does not carry over.
    Edge cases: where a positive combination of all rows cancels there is no solution:
    zero, not ready. Where it does of some alone, weights of these grow and their gains
    fall without end: zero, not ready, as soon as the sum is shorter than 7e-4 of its
    terms (1e-4 in float64); until then, with a small alpha, what the other rows gain
    across them. Of alphas from 0.1 to 5, and rows whose lengths differ 1e4-fold, it
    converges; of 0.01 or 1000 where they differ 10-fold. A zero row has no gain to
    divide: weight 0.
    Derivatives of the update take its weights as constants.
    ``weights``: sample counts, relative to the mean weight: a row of weight 2 is two
    equal rows, up to the length.

    Args:
      alpha: kind of fairness, >= 0: a number, array or schedule.

    Returns:
      A :class:`Reducer` with ``residual`` and ``converged`` in its state.

    Raises:
      ValueError: a static argument is out of range.

    Cost: one Gramian, some ten Cholesky factors of [B, B] (60 for alphas far from 1 and
    lengths far apart), one combination.

    References: Ban and Ji, `Fair Resource Allocation in Multi-Task Learning
    <https://arxiv.org/abs/2402.15638>`_, 2024.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = fairgrad(1.0), jnp.zeros(2)
      >>> rows = jnp.array([[2., 0.], [0., 5.]])
      >>> update, state = rule.update(rows, rule.init(params), params)
      >>> print([round(float(x), 3) for x in update], state.rule_state.converged)
      [1.0, 1.0] True
    """
    _check.interval("alpha", alpha, 0)

    def weigh(
        gramian: Gramian, roster: Roster, state: SolverState
    ) -> tuple[PerRow, SolverState]:
        del state
        value = _check.value_at(alpha, roster.step, gramian.dtype)
        plain = value <= 0
        counts = relative_weights(roster)
        solved = fair_division(gramian, counts, jnp.where(plain, 1, value))
        nothing = cancels(gramian, solved.weights)
        weights = jnp.where(nothing, 0, solved.weights)
        return jnp.where(plain, roster.shares, weights), solved.state

    return reducer(Weighting(weigh, unsolved))
