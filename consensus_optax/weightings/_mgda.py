"""The shortest vector in the convex hull of the rows."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import (
    SolverState,
    cancels,
    over_simplex,
    proven,
    unsolved,
)
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, PerRow


@named
def mgda() -> Reducer:
    r"""MGDA: the shortest convex combination of the rows.

    Also known as: MGDA, min-norm.

    .. math:: u = J^T \lambda, \qquad
        \lambda = \arg\min_{\lambda \ge 0,\ \sum_i \lambda_i = 1} \lambda^T G \lambda

    It is the common descent direction with the largest least gain, if there is one.
    The shortest row dominates: long rows get little weight.

    Difference from the authors' code: the minimum is exact, by an interior-point
    method; theirs stops after 250 steps, or when the weights move by less than 1e-5.
    (It can normalize rows first: so does :func:`normalize_examples`.)

    Guarantees: :math:`\langle g_i, u\rangle \ge \|u\|^2` for every row; in the convex
    hull of the rows; their order is irrelevant; scaling all rows scales it.
    Edge cases: one row, or all equal: that row. A zero row, or rows that cancel (u is
    shorter than 7e-4 of the rows it is made of in float32, 1e-4 in float64): zero, not
    ready, lest an optimizer take rounding for a direction; residual 0.
    Derivatives of the update take its weights as constants.
    ``weights``: 0 = absent; other values do not matter.

    Returns:
      A :class:`Reducer` with ``residual`` and ``converged`` in its state.

    Cost: one Gramian, some ten Cholesky factors of [B, B], one combination; five
    arrays of B x B numbers at once.

    References: Désidéri, Multiple-gradient descent algorithm (MGDA) for multiobjective
    optimization, 2012; Sener and Koltun, `Multi-Task Learning as Multi-Objective
    Optimization <https://arxiv.org/abs/1810.04650>`_, 2018.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = mgda(), jnp.zeros(2)
      >>> rows = jnp.array([[2., 0.], [0., 1.]])
      >>> update, state = rule.update(rows, rule.init(params), params)
      >>> print([round(float(x), 3) for x in update], state.rule_state.converged)
      [0.4, 0.8] True
    """

    def weigh(
        gramian: Gramian, roster: Roster, state: SolverState
    ) -> tuple[PerRow, SolverState]:
        del state
        weights, new_state = over_simplex(gramian, roster.present)
        still = jnp.any(roster.present & (gramian.diagonal() <= 0))
        nothing = still | cancels(gramian, weights)
        return jnp.where(nothing, 0, weights), proven(new_state, nothing)

    return reducer(Weighting(weigh, unsolved, degree=0))
