"""MoDo: MoCo's step from products of two batches, so that noise does not bias it."""

from __future__ import annotations

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
    of_batches,
    stepped,
    to_batches,
    uniform,
)


@named
def modo(
    num_tasks: int,
    num_batches: int = 2,
    learning_rate: Threshold = 0.1,
    regularization: Threshold = 0.1,
) -> Reducer:
    r"""MoDo: task weights moved by products of the rows of two batches.

    Also known as: multi-objective gradient with double sampling.

    .. math:: \lambda \leftarrow \Pi_\Delta\big(\lambda - \gamma (J_1 J_2^T + \rho I)
        \lambda\big), \qquad u = \tfrac{1}{2} (J_1 + J_2)^T \lambda

    The rows are those of K tasks on one batch, then those on another, drawn apart:
    ``jax.tree.map(lambda *x: jnp.concatenate(x), rows_1, rows_2)``. A product of one
    batch with itself contains the variance of its noise, one of two does not, so the
    step is right in expectation. With a third batch :math:`u = J_3^T \lambda`, and the
    weights do not depend on what they weigh.

    Guarantees: in the convex hull of the rows of the batches that the update is of;
    :math:`\gamma = 0`: their mean over tasks; where batches are equal it is
    :func:`moco`; the order of the tasks is irrelevant if the state's goes along. Not
    scale-free: :math:`\gamma` is in units of one over a squared length.
    Edge cases: a task is there if its rows are in all batches; an absent one is left
    out and keeps its weight. No task: zero, not ready.
    ``weights``: which rows are there.

    Args:
      num_tasks: K, since the state holds one weight a task.
      num_batches: 2 or 3; the stack has that many times K rows.
      learning_rate: :math:`\gamma` >= 0: a number, array or schedule.
      regularization: :math:`\rho` >= 0, towards equal weights: a number, array or
        schedule.

    Returns:
      A :class:`Reducer` with ``coefficients`` in its state.

    Raises:
      ValueError: an argument is out of range; when traced, a stack of another number of
        rows.

    Cost: one Gramian, one combination.

    References: Chen et al., `Three-Way Trade-Off in Multi-Objective Learning:
    Optimization, Generalization and Conflict-Avoidance
    <https://arxiv.org/abs/2305.20057>`_, 2023 (Algorithm 1).

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = modo(num_tasks=2), jnp.zeros(2)
      >>> rows = jnp.array([[1., 0.], [0., 2.], [1., 0.], [0., 4.]])
      >>> update, state = rule.update(rows, rule.init(params), params)
      >>> print([round(float(x), 3) for x in update])
      [0.675, 0.975]
    """
    _check.count("num_tasks", num_tasks)
    _check.one_of_counts("num_batches", num_batches, (2, 3))
    _check.interval("learning_rate", learning_rate, 0)
    _check.interval("regularization", regularization, 0)

    def weigh(
        gramian: Gramian, roster: Roster, state: TaskWeightsState
    ) -> tuple[PerRow, TaskWeightsState]:
        cross, present = of_batches(gramian, roster, num_tasks, num_batches)
        weights, mass = among_present(state, present)
        gamma = _check.value_at(learning_rate, roster.step, gramian.dtype)
        rho = _check.value_at(regularization, roster.step, gramian.dtype)
        slope = product(cross, weights) + rho * weights
        weights = stepped(weights, slope, gamma, present)
        new_state = moved(state, present, mass, weights)
        return to_batches(weights, num_batches), new_state

    return reducer(Weighting(weigh, uniform(num_tasks)))
