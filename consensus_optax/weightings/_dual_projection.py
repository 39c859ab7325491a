"""The mean of the rows, moved until it opposes none of them."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import (
    SolverState,
    cancels,
    dual_cone,
    is_left_over,
    kept,
    unsolved,
)
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, PerRow, Threshold
from consensus_optax.weightings import _preference
from consensus_optax.weightings._preference import Preference


@named
def dual_projection(
    preference: Preference | None = None, regularization: Threshold = 1e-4
) -> Reducer:
    r"""DualProj (GEM): the closest vector to the mean that opposes no row.

    Also known as: DualProj, GEM.

    .. math:: u = J^T v, \qquad v = \arg\min_{v \ge p} v^T H v, \qquad
        H = G / \mathrm{tr}\,G + \epsilon I

    p = 1/N, or the preference. u is the projection of :math:`J^T p` on the dual cone
    of the rows, up to :math:`\epsilon`: on all u with :math:`J u \ge 0`.

    Guarantees: :math:`\langle g_i, u\rangle \ge -\epsilon v_i \mathrm{tr}\,G`; the
    mean itself where that opposes no row; the order of the rows is irrelevant; scaling
    all rows scales it.
    Edge cases: one row, or all equal: that row. Rows that cancel: zero, not ready; so
    wherever :math:`\epsilon` leaves less than half of the projection
    (:math:`\langle J^T p, u\rangle > 2 \|u\|^2`, which are equal but for it), lest an
    optimizer take the rest for a direction. A zero row constrains nothing.
    Derivatives of the update take its weights as constants.
    ``weights``: sample counts: a row of weight 2 is two equal rows, up to
    :math:`\epsilon`.

    Args:
      preference: (B,) numbers >= 0 instead of 1/N each; rows count as preference times
        weight over the mean weight.
      regularization: :math:`\epsilon` > 0: a number, array or schedule.

    Returns:
      A :class:`Reducer` with ``residual`` and ``converged`` in its state.

    Raises:
      ValueError: a static argument is out of range; when traced, ``preference`` is not
        (B,).

    Cost: one Gramian, some tens of products [B] x [B, B], one combination.

    References: Lopez-Paz and Ranzato, `Gradient Episodic Memory for Continual Learning
    <https://arxiv.org/abs/1706.08840>`_, 2017 (equation 11); Quinton and Rey, `Jacobian
    Descent for Multi-Objective Optimization <https://arxiv.org/abs/2406.16232>`_, 2024.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = dual_projection(), jnp.zeros(2)
      >>> rows = jnp.array([[1., 1.], [-5., 1.]])
      >>> update, state = rule.update(rows, rule.init(params), params)
      >>> print([round(float(x), 2) for x in update], state.rule_state.converged)
      [-1.5, 1.5] True
    """
    _preference.check(preference)
    _check.interval("regularization", regularization, 0, open_low=True)

    def weigh(
        gramian: Gramian, roster: Roster, state: SolverState
    ) -> tuple[PerRow, SolverState]:
        del state
        lower = _preference.weighted(preference, roster)
        shift = _check.value_at(regularization, roster.step, gramian.dtype)
        weights, new_state = dual_cone(gramian, lower[None, :], shift)
        nothing = is_left_over(kept(gramian, lower[None, :], weights))
        weights = jnp.squeeze(weights, 0)
        nothing |= cancels(gramian, weights)
        return jnp.where(nothing, 0, weights), new_state

    return reducer(Weighting(weigh, unsolved, degree=0))
