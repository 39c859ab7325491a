"""The best step in the span of the rows, by a quadratic model of the loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import product, stationary_on_simplex, unsolved
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import (
    Array,
    Flag,
    Gramian,
    Number,
    PerRow,
    Threshold,
    Tree,
)

_BISECTIONS = 60


class TrustRegionState(NamedTuple):
    """What the model said in the last step.

    Attributes:
      predicted_decrease: () float32, of the loss by the update, at learning rate 1.
      least_curvature: () float32, smallest eigenvalue of the Hessian in the span.
      on_boundary: () bool, the update is as long as it may be.
    """

    predicted_decrease: Number
    least_curvature: Number
    on_boundary: Flag


class SimplexRegionState(NamedTuple):
    """What the model said in the last step, over weights >= 0.

    Attributes:
      predicted_decrease: () float32, of the loss by the update, at learning rate 1.
      residual: () float32, how far the weights are from a stationary point.
      converged: () bool, whether that is at most 1e-5 (1e-10 in float64).
    """

    predicted_decrease: Number
    residual: Number
    converged: Flag


@named
def trust_region_weighting(radius: Threshold, region: str = "ball") -> Reducer:
    r"""Second-order weights (trust region) in the subspace that the rows span.

    Also known as: subspace trust region.

    .. math:: \min_a\; -\bar g^\top u + \tfrac12\, u^\top \nabla^2 f\, u
        \quad\text{for}\quad u = \sum_i a_i g_i, \quad \|u\| \le \Delta

    that is :math:`-a^\top G \omega + \frac12 a^\top H a` with shares
    :math:`\omega`, the Gramian G and :math:`H_{ij} = g_i^\top \nabla^2 f\, g_j`. H is
    an extra argument, ``update(rows, state, params, span_hessian=H)``, from
    :func:`span_hessian`. The step is for learning rate 1, ``optax.sgd(1.0)``: its
    length is the model's.

    With ``region="simplex"`` the same model over weights :math:`a_i \ge 0,\ \sum_i a_i
    = \Delta`: the update is :math:`\Delta` times a point in the convex hull of the
    rows, so that no row is used against its own direction.

    Guarantees of the ball: no longer than the radius (to rounding); the model's
    decrease is at least that of the best step along the mean; unchanged if rows are
    scaled or mixed, so long as span and mean are the same; the order of the rows is
    irrelevant; on a
    quadratic loss, the exact minimum over span and ball.
    Edge cases: rows that depend on each other: directions below 1e-6 of the largest
    squared length are left out. Negative curvature: a step to the boundary; a direction
    of negative curvature in which the mean has no component is not taken. All rows
    zero: zero, not ready.
    Derivatives of the update take its weights as constants.
    Guarantees of the simplex: the model's decrease is at least that of
    :math:`\Delta \bar g`; the order of the rows is irrelevant where there is one
    minimum. If H has no negative eigenvalue, it is the minimum over the simplex. With
    negative curvature it is a stationary point, on the way down from the mean: no row's
    slope is below the mean slope, but another point may be lower.

    ``weights``: sample counts, in the mean; a row of weight 0 does not span.

    Args:
      radius: :math:`\Delta`, the longest update, or the sum of the weights; positive. A
        number, array or schedule.
      region: ``"ball"`` or ``"simplex"``.

    Returns:
      A :class:`Reducer` with ``predicted_decrease``, ``least_curvature`` and
      ``on_boundary`` in its state (``predicted_decrease``, ``residual`` and
      ``converged`` on the simplex).

    Raises:
      ValueError: ``radius`` is not positive, ``region`` is unknown; when traced,
        ``span_hessian`` is missing or not (B, B).

    Cost: one Gramian, two eigendecompositions of (B, B), one combination; and the B
    Hessian-vector products of :func:`span_hessian`. On the simplex some tens of
    Cholesky factors of (B, B), some hundreds where curvature is negative.

    References: the third open question of Choukroun et al., `Adaptive Consensus
    Gradients Aggregation <https://arxiv.org/abs/2411.03742>`_, 2024; Moré, Sorensen,
    `Computing a trust region step <https://doi.org/10.1137/0904038>`_, 1983.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> loss = lambda w: w[0] ** 2 + 3 * w[1] ** 2
      >>> params, rows = jnp.ones(2), jnp.array([[4., 0.], [0., 12.]])
      >>> rule = co.trust_region_weighting(radius=10.0)
      >>> hessian = co.span_hessian(loss, params, rows)
      >>> print(rule.update(rows, rule.init(params), params, span_hessian=hessian)[0])
      [1. 1.]
    """
    _check.interval("radius", radius, 0, open_low=True)
    _check.one_of("region", region, ("ball", "simplex"))
    if region == "simplex":
        return reducer(_over_simplex(radius))

    def init(params: Tree, dtype: Any) -> TrustRegionState:
        del params, dtype
        return TrustRegionState(
            predicted_decrease=jnp.zeros((), jnp.float32),
            least_curvature=jnp.zeros((), jnp.float32),
            on_boundary=jnp.zeros((), bool),
        )

    def weigh(gramian: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        del state
        hessian = _given_hessian(roster)
        # An orthonormal basis of the span, columns of basis.T J, in units of the
        # longest direction, so that nothing overflows.
        size = jnp.max(jnp.abs(gramian.diagonal()))
        scale = positive_or_one(size)
        squares, vectors = jnp.linalg.eigh(gramian / scale)
        spans = squares > 1e-6 * squares[-1]
        lengths = jnp.sqrt(jnp.where(spans, squares, 1))
        basis = jnp.where(spans[None, :], vectors / lengths[None, :], 0)  # (B, B)
        slope = product(basis.T, product(gramian / scale, roster.shares))
        # Rounding is no direction to go to the boundary in.
        terms = product(jnp.abs(basis.T), product(jnp.abs(gramian), roster.shares))
        known = jnp.abs(slope) > 8 * jnp.finfo(slope.dtype).eps * terms / scale
        slope = jnp.where(known, slope, 0)
        curvature = product(product(basis.T, hessian / scale), basis)
        # What is no direction of the span gets the largest curvatures, the last ones.
        above = 2 * jnp.abs(curvature).sum(1).max() + 1
        curvature += jnp.diag(jnp.where(spans, 0, above))
        values, axes = jnp.linalg.eigh((curvature + curvature.T) / 2)
        inside = jnp.arange(values.shape[0]) < spans.sum()
        unit = jnp.sqrt(scale)  # the basis' unit of length
        slope = jnp.where(inside, product(axes.T, slope) * unit, 0)
        limit = _check.value_at(radius, roster.step, gramian.dtype)
        steps = _steps(values, slope, _shift(values, slope, limit))
        weights = product(basis, product(axes, steps)) / unit
        decrease = slope @ steps - jnp.sum(values * steps**2) / 2
        least = jnp.min(jnp.where(inside, values, jnp.inf))
        return weights, TrustRegionState(
            jnp.asarray(decrease, jnp.float32),
            jnp.where(inside.any(), least, 0).astype(jnp.float32),
            jnp.linalg.norm(steps) > 0.999 * limit,
        )

    return reducer(Weighting(weigh, init))


def _over_simplex(radius: Threshold) -> Weighting:
    """The rule on weights >= 0 with the sum ``radius``."""

    def init(params: Tree, dtype: Any) -> SimplexRegionState:
        zero = jnp.zeros((), jnp.float32)
        return SimplexRegionState(zero, *unsolved(params, dtype))

    def weigh(gramian: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        del state
        hessian = _given_hessian(roster)
        limit = _check.value_at(radius, roster.step, gramian.dtype)
        slope = product(gramian, roster.shares)
        solved = stationary_on_simplex(-slope, limit * hessian, roster.shares)
        a = limit * solved.weights
        decrease = product(slope, a) - product(a, product(hessian, a)) / 2
        weights = jnp.where(jnp.any(gramian.diagonal() > 0), a, 0)
        told = jnp.asarray(decrease, jnp.float32)
        return weights, SimplexRegionState(told, *solved.state)

    return Weighting(weigh, init)


def _steps(values: Array, slope: Array, shift: Array) -> Array:
    """The stationary step along every axis, with the curvature shifted."""
    shifted = values + shift
    return jnp.where(shifted > 0, slope / positive_or_one(shifted), 0)


def _shift(values: Array, slope: Array, limit: Array) -> Array:
    """What to add to the curvatures so that the step is no longer than the limit."""
    pulled = slope != 0
    size = jnp.max(jnp.where(pulled, jnp.abs(values), 0))
    least = jnp.min(jnp.where(pulled, values, size))
    # Curvature that is zero to rounding counts as none, and the ball stops the step.
    flat = least <= 1e-6 * size
    floor = jnp.where(flat, jnp.maximum(-least, 0) + 1e-6 * size, 0)
    length = lambda shift: jnp.linalg.norm(_steps(values, slope, shift))

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        long = length(middle) > limit
        return jnp.where(long, middle, low), jnp.where(long, high, middle)

    top = floor + jnp.linalg.norm(slope) / limit + jnp.maximum(-least, 0)
    _, shift = lax.fori_loop(0, _BISECTIONS, halve, (floor, top))
    return jnp.where((length(floor) <= limit) & ~flat, floor, shift)


def _given_hessian(roster: Roster) -> Array:
    """H from the extra arguments of ``update``, 0 where a row is absent."""
    hessian, count = roster.extra.get("span_hessian"), roster.weights.shape[0]
    if hessian is None:
        raise ValueError(
            "`span_hessian` must be the Hessian between the rows, an array of shape "
            "(B, B), passed as `update(rows, state, params, span_hessian=H)`; got "
            "None. `co.span_hessian(loss, params, rows, batch)` computes it."
        )
    hessian = _check.array("span_hessian", hessian, "an array (B, B)")
    if hessian.shape != (count, count):
        raise ValueError(
            f"`span_hessian` must have shape ({count}, {count}), one entry for every "
            f"pair of rows; got {hessian.shape}"
        )
    pairs = roster.present[:, None] & roster.present[None, :]
    return jnp.where(pairs, hessian.astype(roster.weights.dtype), 0)
