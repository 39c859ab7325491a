"""Every row moved until it opposes none, then their mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.blocks_of_rows import by_blocks
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import (
    Kept,
    SolverState,
    cancels,
    dual_cone,
    is_left_over,
    kept,
    unsolved,
)
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, Gramian, PerRow, Threshold
from consensus_optax.weightings import _preference
from consensus_optax.weightings._preference import Preference


@named
def upgrad(
    preference: Preference | None = None, regularization: Threshold = 1e-4
) -> Reducer:
    r"""UPGrad: each row is projected so that it opposes no row; then the mean.

    Also known as: UPGrad, Jacobian descent.

    .. math:: u = J^T \sum_i v_i, \qquad
        v_i = \arg\min_{v \ge p_i e_i} v^T H v, \qquad
        H = G / \mathrm{tr}\,G + \epsilon I

    p = 1/N, or the preference: the sum of the projections of :math:`p_i g_i` on the
    dual cone of the rows, up to :math:`\epsilon`. (:func:`dual_projection` projects
    their mean, and so lets long rows drown short ones.)

    Guarantees: :math:`\langle g_i, u\rangle \ge -\epsilon (\sum_j v_j)_i
    \mathrm{tr}\,G`; the mean where no two rows oppose each other; linear in the length
    of each row, as far as :math:`\epsilon` is small against the eigenvalues of
    :math:`G / \mathrm{tr}\,G`; the order of the rows is irrelevant.
    Edge cases: one row, or all equal: that row. Rows that cancel: zero, not ready; so
    wherever :math:`\epsilon` leaves less than half of the projections
    (:math:`\sum_i p_i \langle g_i, u_i\rangle > 2 \sum_i \|u_i\|^2`, which are equal
    but for it), lest an optimizer take the rest for a direction. A zero row constrains
    nothing and adds nothing.
    Derivatives of the update take its weights as constants.
    ``weights``: sample counts: a row of weight 2 is two equal rows, up to
    :math:`\epsilon`.

    Args:
      preference: (B,) numbers >= 0 instead of 1/N each; rows count as preference times
        weight over the mean weight.
      regularization: :math:`\epsilon` > 0: a number, array or schedule.

    Returns:
      A :class:`Reducer` with ``residual`` (the largest of the N problems) and
      ``converged`` in its state.

    Raises:
      ValueError: a static argument is out of range; when traced, ``preference`` is not
        (B,).

    Cost: one Gramian, some tens of products [B, B] x [B, B], one combination; five
    arrays of B x B numbers at once, since 128 rows are projected at a time.

    References: Quinton and Rey, `Jacobian Descent for Multi-Objective Optimization
    <https://arxiv.org/abs/2406.16232>`_, 2024.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = upgrad(), jnp.zeros(2)
      >>> rows = jnp.array([[1., 0.], [-1., 1.]])
      >>> update, state = rule.update(rows, rule.init(params), params)
      >>> print([round(float(x), 2) for x in update], state.rule_state.converged)
      [0.25, 0.75] True
    """
    _preference.check(preference)
    _check.interval("regularization", regularization, 0, open_low=True)

    def weigh(
        gramian: Gramian, roster: Roster, state: SolverState
    ) -> tuple[PerRow, SolverState]:
        del state
        count = roster.weights.shape[0]
        lengths = _preference.weighted(preference, roster)
        shift = _check.value_at(regularization, roster.step, gramian.dtype)

        def project(rows: Array, there: Array) -> tuple[Array, Kept, SolverState]:
            own = jnp.where(there, lengths[rows], 0)[:, None]
            lower = own * jax.nn.one_hot(rows, count, dtype=gramian.dtype)
            weights, solved = dual_cone(gramian, lower, shift)
            return weights.sum(0), kept(gramian, lower, weights), solved

        weights, parts, solved = by_blocks(project, count)
        weights = weights.sum(0)
        nothing = is_left_over(Kept(*(part.sum() for part in parts)))
        nothing |= cancels(gramian, weights)
        new_state = SolverState(solved.residual.max(), solved.converged.all())
        return jnp.where(nothing, 0, weights), new_state

    return reducer(Weighting(weigh, unsolved, degree=0))
