"""The bargaining solution among rows."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import root
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import (
    SolverState,
    cancels,
    fair_division,
    product,
    ratio,
    unsolved,
)
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, PerRow, Threshold
from consensus_optax.weightings._preference import relative_weights


@named
def nash_mtl(max_norm: Threshold | None = 1.0) -> Reducer:
    r"""Nash-MTL: the step that maximises the product of the rows' gains.

    Also known as: Nash-MTL, Nash.

    .. math:: u = J^T \lambda, \qquad
        \lambda_i\, (G \lambda)_i = w_i \quad\text{for all } i

    then clipped to the length ``max_norm``. Before clipping its length is
    :math:`\sqrt N`, whatever the rows' lengths, so the default, that of the authors'
    code, always clips: the step is then a direction.

    Differences from the authors' code:
      1. the equations are solved, by Newton's method (their sequence of convex programs
         stops after 20 rounds, and keeps the weights of the last step when its solver
         fails);
      2. every step solves them anew; theirs can reuse weights for some steps.

    Guarantees: every row gains; no step of that length has a larger product of
    :math:`\langle g_i, u\rangle^{w_i}`; scaling any one row changes nothing; the order
    of the rows is irrelevant.
    Edge cases: rows that cancel, also some of them alone, have no solution: zero, not
    ready (where the sum is shorter than 7e-4 of its terms, 1e-4 in float64). A zero
    row has nothing to bargain for: weight 0. One row: its direction.
    Derivatives of the update take its weights as constants.
    ``weights``: sample counts, relative to the mean weight: a row of weight 2 is two
    equal rows, up to the length.

    Args:
      max_norm: largest length of the update, > 0: a number, array or schedule; None
        for any length.

    Returns:
      A :class:`Reducer` with ``residual`` and ``converged`` in its state.

    Raises:
      ValueError: a static argument is out of range.

    Cost: one Gramian, some ten Cholesky factors of [B, B], one combination.

    References: Navon et al., `Multi-Task Learning as a Bargaining Game
    <https://arxiv.org/abs/2202.01017>`_, 2022.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = nash_mtl(), jnp.zeros(2)
      >>> rows = jnp.array([[3., 0.], [0., 40.]])
      >>> update, state = rule.update(rows, rule.init(params), params)
      >>> print([round(float(x), 3) for x in update], state.rule_state.converged)
      [0.707, 0.707] True
    """
    if max_norm is not None:
        _check.interval("max_norm", max_norm, 0, open_low=True)

    def weigh(
        gramian: Gramian, roster: Roster, state: SolverState
    ) -> tuple[PerRow, SolverState]:
        del state
        one = jnp.ones((), gramian.dtype)
        solved = fair_division(gramian, relative_weights(roster), one)
        weights = jnp.where(cancels(gramian, solved.weights), 0, solved.weights)
        if max_norm is not None:
            square = product(weights, product(gramian, weights))
            longest = _check.value_at(max_norm, roster.step, gramian.dtype)
            weights *= jnp.minimum(1, ratio(longest, root(square)))
        return weights, solved.state

    return reducer(Weighting(weigh, unsolved, degree=-1))
