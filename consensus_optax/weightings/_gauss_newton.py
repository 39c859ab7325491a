"""Second order in the span of the rows: damped Gauss-Newton through the Gramian."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import SolverState, ridge, unsolved
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Bordered, PerWeight, Threshold
from consensus_optax.weightings._keep_smallest_losses import row_values


@named
def gauss_newton(damping: Threshold, momentum: Threshold = 0.0) -> Reducer:
    r"""The damped Gauss-Newton step of a sum of squares, solved among the rows.

    Also known as: Levenberg-Marquardt, natural gradient, minSR, ENGD-W, SPRING.

    Rows are gradients J of residuals r, one number each, which ``update`` gets as
    ``values``. With weights W and the last update :math:`u_{t-1}`

    .. math::
        u_t = \arg\min_u \|W^{1/2} (J u - r)\|^2
            + \lambda \|u - \mu u_{t-1}\|^2
            = \mu u_{t-1} + J^\top W^{1/2} (W^{1/2} G W^{1/2} + \lambda I)^{-1}
              W^{1/2} (r - \mu J u_{t-1})

    so that a step of ``optax.sgd(1.0)`` brings a linear model's residuals to zero where
    lambda is small. For a natural gradient of other losses r is the gradient of the
    loss by the outputs.

    Guarantees: the update is J^T times something, plus mu times the last one; as
    lambda goes to 0 that of least length which fits best, as it grows the gradient
    J^T W r divided by lambda; the order of the rows is irrelevant. In the state,
    ``residual`` is that of the linear system that is solved, relative to its right
    side b: the update is off by at most norm(b) residual / (2 sqrt(lambda)).
    Edge cases: a row whose residual is not finite counts as absent. Where the system
    is singular to rounding (lambda 0, dependent rows), so that more than a hundredth of
    b is left, nothing is agreed on: zero, not ready.

    ``weights``: sample counts: a row of weight 2 is two equal rows.

    Args:
      damping: lambda, 0 or above, in units of a row's squared length: a number, array
        or schedule of the step.
      momentum: mu in [0, 1], SPRING's decay; likewise. 0 keeps nothing, all else one
        array like the parameters.

    Returns:
      A :class:`Reducer` with a ``SolverState`` in its state; ``update`` needs
      ``values`` (B,).

    Raises:
      ValueError: a static argument is out of range; when traced, ``values`` are missing
        or of another shape.

    Cost: one Gramian, one Cholesky factorization of (B, B) and two solutions with it,
    one combination.

    Source: Chen and Heyl 2024 (minSR), arXiv 2302.01941; Mueller and Zeinhofer 2023
    (energy natural gradients), arXiv 2302.13163; momentum: Goldshlager, Abrahamsen and
    Lin 2024 (SPRING), arXiv 2401.10190. Theirs subtract the mean row and scale by the
    number of samples; that is for wave functions, and up to the caller here.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> residual = lambda w, x: jnp.vdot(x[:2], w) - x[2]
      >>> x, w = jnp.array([[1., 0., 3.], [1., 1., 1.]]), jnp.zeros(2)
      >>> rule = gauss_newton(1e-6)
      >>> step = co.value_and_reduced_grad(residual, rule, keep_batch_dim=False)
      >>> _, update, _ = step(w, x, state=rule.init(w))
      >>> [round(float(x), 3) for x in w - update]  # solves both equations
      [3.0, -2.0]
    """
    _check.interval("damping", damping, 0)
    _check.interval("momentum", momentum, 0, 1)

    # a number 0 known when made needs no memory; what may change does
    remembers = not isinstance(momentum, int | float) or momentum > 0

    def weigh(
        gramian: Bordered, roster: Roster, state: Any
    ) -> tuple[PerWeight, SolverState]:
        del state
        values, count = row_values(roster), roster.weights.shape[0]
        there = roster.present & jnp.isfinite(values)
        root = jnp.sqrt(jnp.where(there, roster.weights, 0))
        share = _check.value_at(momentum, roster.step, root.dtype)
        value = _check.value_at(damping, roster.step, root.dtype)
        if remembers:  # what the last update does to each residual
            values = values - share * gramian[-1, :count]
        aim = jnp.where(there, root * values, 0)
        scaled = root[:, None] * gramian[:count, :count] * root[None, :]
        # where no row is, anything but 0 on the diagonal gives weight 0
        solved = ridge(scaled, jnp.where(there, value, 1), aim)
        weights = root * solved.weights
        if remembers:
            weights = jnp.append(weights, jnp.where(jnp.any(there), share, 0))
        return weights, solved.state

    return reducer(Weighting(weigh, unsolved, remembers=remembers))
