"""SDMGrad: least-norm weights with a pull towards a preferred direction."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._rows.varying import varying_like
from consensus_optax._rules.arithmetic import root
from consensus_optax._rules.distances import shares_of
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import product, ratio
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, Gramian, PerRow, Threshold
from consensus_optax.weightings import _preference
from consensus_optax.weightings._preference import Preference
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
def sdmgrad(
    num_tasks: int,
    num_batches: int = 2,
    pull: Threshold = 0.3,
    preference: Preference | None = None,
    learning_rate: Threshold = 5.0,
    momentum: Threshold = 0.5,
    num_iterations: int = 20,
) -> Reducer:
    r"""SDMGrad: little norm, regularized towards a preferred direction, of two batches.

    Also known as: direction-oriented multi-objective descent.

    .. math:: w \leftarrow \Pi_\Delta\big(w - \alpha m\big), \quad
        m \leftarrow \mu m + \tfrac{1}{s^2} J_1 J_2^T (w + c\, p), \qquad
        u = \tfrac{1}{2} (J_1 + J_2)^T \frac{w + c\, p}{1 + c}

    with :math:`s` the mean of the tasks' lengths, :math:`\sqrt{\max(0, \langle
    g_{1k}, g_{2k}\rangle)}`, m = 0 at the start of a step and w kept from step to step.
    The rows are those of K tasks on one batch, then those on another, as in
    :func:`modo`; with a third one u is of that, as in the authors' code.

    Guarantees: in the convex hull of the rows of the batches that the update is of;
    scaling all rows scales it; the order of the tasks is irrelevant if the state's and
    the preference's go along. Large c: the preferred direction.
    Edge cases: a task is there if its rows are in all batches; an absent one is left
    out and keeps its weight. No batch product is positive: w stays. No task: zero, not
    ready. (The authors' code adds 1e-8 to :math:`s^2`.)
    ``weights``: which rows are there.

    Args:
      num_tasks: K, since the state holds one weight a task.
      num_batches: 2 or 3; the stack has that many times K rows.
      pull: c >= 0: a number, array or schedule.
      preference: p, (K,) numbers >= 0 that are scaled to sum 1; equal if None.
      learning_rate: :math:`\alpha` >= 0: a number, array or schedule.
      momentum: :math:`\mu` in [0, 1): a number, array or schedule.
      num_iterations: of w in one step.

    Returns:
      A :class:`Reducer` with ``coefficients`` in its state.

    Raises:
      ValueError: an argument is out of range; when traced, a stack of another number of
        rows, or ``preference`` is not (K,).

    Cost: one Gramian, ``num_iterations`` products with a [K, K] matrix, one
    combination.

    References: Xiao, Ban and Ji, `Direction-oriented Multi-objective Learning: Simple
    and Provable Stochastic Algorithms <https://arxiv.org/abs/2305.18409>`_, 2023.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule = sdmgrad(num_tasks=2, pull=0.0, learning_rate=0.1)
      >>> params = jnp.zeros(2)
      >>> rows = jnp.array([[1., 0.], [0., 2.], [1., 0.], [0., 2.]])
      >>> update, state = rule.update(rows, rule.init(params), params)
      >>> print([round(float(x), 2) for x in update])
      [0.8, 0.4]
    """
    _check.count("num_tasks", num_tasks)
    _check.one_of_counts("num_batches", num_batches, (2, 3))
    _check.interval("pull", pull, 0)
    _preference.check(preference)
    _check.interval("learning_rate", learning_rate, 0)
    _check.interval("momentum", momentum, 0, 1, open_high=True)
    _check.count("num_iterations", num_iterations)

    def weigh(
        gramian: Gramian, roster: Roster, state: TaskWeightsState
    ) -> tuple[PerRow, TaskWeightsState]:
        value = lambda x: _check.value_at(x, roster.step, gramian.dtype)
        cross, present = of_batches(gramian, roster, num_tasks, num_batches)
        start, mass = among_present(state, present)
        toward = shares_of(_preference.of_tasks(preference, present, start.dtype))
        lengths = root(cross.diagonal())
        mean = ratio(lengths.sum(), present.sum().astype(lengths.dtype))
        cross = ratio(ratio(cross, mean), mean)
        c = jnp.where(toward.sum() > 0, value(pull), 0)  # none there is preferred: none
        alpha, mu = value(learning_rate), value(momentum)

        def descend(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            weights, velocity = carry
            velocity = mu * velocity + product(cross, weights + c * toward)
            return stepped(weights, velocity, alpha, present), velocity

        begin = varying_like((start, jnp.zeros_like(start)), gramian, start)
        weights, _ = lax.fori_loop(0, num_iterations, descend, begin)
        new_state = moved(state, present, mass, weights)
        return to_batches((weights + c * toward) / (1 + c), num_batches), new_state

    return reducer(Weighting(weigh, uniform(num_tasks), degree=0))
