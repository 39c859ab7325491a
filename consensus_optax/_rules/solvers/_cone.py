"""Projections on the dual cone of rows, all from one Gramian [B, B].

What the folder says of its problems holds here too.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from consensus_optax._rules.solvers._solution import (
    Solution,
    product,
    ratio,
    solution,
)
from consensus_optax._typing import Array, Flag, Gramian, Number, PerProblem


class _Descent(NamedTuple):
    """Loop of :func:`nonnegative`, one problem a row; all (K, B) or (K, 1)."""

    step: Array
    point: Array
    slope: Array
    direction: Array
    stale: Array


def dual_cone(
    gramian: Gramian, lower: PerProblem, regularization: Number, max_steps: int = 1000
) -> Solution:
    r"""Minimises v'Hv over v >= u, for every row u of ``lower``.

    H is the Gramian over its trace, plus ``regularization`` times the identity. J'v is
    then the projection of J'u on the cone of directions that no row opposes, since the
    optimality conditions are Hv >= 0, v >= u and (v - u)'Hv = 0.

    H has unit diagonal by a change of variables, which bounds allow and which evens out
    rows of unequal norms; then it is :func:`nonnegative` that solves it.

    Args:
      gramian: (B, B).
      lower: (K, B), the bounds u, one problem a row; 0 for absent rows.
      regularization: (), what is added to the eigenvalues, positive.
      max_steps: bound on the number of steps; the loop ends where all have converged.

    Returns:
      Weights (K, B) and the largest residual of all problems: the largest violation of
      the conditions, relative to the sum of the rows' lengths times u.
    """
    gramian, lower = lax.stop_gradient((gramian, lower))
    trace = jnp.trace(gramian)
    hessian = ratio(gramian, trace)
    hessian += regularization * jnp.eye(gramian.shape[0], dtype=gramian.dtype)
    length = jnp.sqrt(hessian.diagonal())[None, :]
    hessian = hessian / length.T / length
    bound = lower * length
    size = jnp.sum(jnp.abs(bound), 1, keepdims=True)
    offset = product(ratio(bound, size), hessian)  # slope at v = u, (K, B)
    point = nonnegative(hessian, offset, max_steps)
    slope = product(point, hessian) + offset
    worst = jnp.max(jnp.abs(jnp.minimum(point, slope)))
    return solution(jnp.maximum(lower + point * size / length, lower), worst)


def nonnegative(
    hessian: Gramian, offset: PerProblem, max_steps: int = 1000
) -> PerProblem:
    r"""Minimises z'Hz / 2 + q'z over z >= 0, for every row q of ``offset``.

    Conjugate gradients inside the face of bounds that hold, with one fixed step along
    the gradient where a bound is met and a step along the violated conditions where
    those dominate (Dostál's modified proportioning). Each step costs one [K, B] x
    [B, B] product for all problems together, and there is no factorisation for each of
    K faces, which at K = B = 512 would not fit.

    Args:
      hessian: (B, B), positive definite with unit diagonal.
      offset: (K, B), one problem a row, of numbers of about 1 at the most.
      max_steps: bound on the number of steps; the loop ends where all have converged.

    Returns:
      z, (K, B): to rounding, z = 0 where Hz + q > 0 and Hz + q = 0 elsewhere.
    """
    pace = 1 / (1.1 * _largest_eigenvalue(hessian))
    enough = 4 * jnp.finfo(hessian.dtype).eps

    def residual(state: _Descent) -> Array:
        return jnp.max(jnp.abs(jnp.minimum(state.point, state.slope)), 1, keepdims=True)

    def unfinished(state: _Descent) -> Array:
        open_problems = state.stale | (residual(state) > enough)
        return (state.step < max_steps) & jnp.any(open_problems)

    def dot(x: Array, y: Array) -> Array:
        return jnp.sum(x * y, 1, keepdims=True)

    def step(state: _Descent) -> _Descent:
        point, slope = state.point, state.slope
        free = point > 0
        inside = jnp.where(free, slope, 0)
        blocked = jnp.where(free, 0, jnp.minimum(slope, 0))
        reachable = jnp.where(free, jnp.minimum(point / pace, slope), 0)
        in_face = dot(blocked, blocked) <= dot(inside, reachable)
        direction = jnp.where(in_face, state.direction, blocked)
        image = product(jnp.where(state.stale, point, direction), hessian)
        # A problem whose slope was lost spends this product on its point instead.
        curvature = dot(direction, image)
        wanted = ratio(dot(slope, direction), curvature)
        moving = direction > 0
        room = jnp.where(moving, point / jnp.where(moving, direction, 1), jnp.inf)
        possible = jnp.min(room, 1, keepdims=True)
        bounded = in_face & (wanted > possible)
        stride = jnp.where(bounded, possible, wanted)
        new_point = jnp.maximum(point - stride * direction, 0)
        new_slope = slope - stride * image
        new_inside = jnp.where(new_point > 0, new_slope, 0)
        conjugate = new_inside - ratio(dot(new_inside, image), curvature) * direction
        new_point = jnp.where(
            bounded, jnp.maximum(new_point - pace * new_inside, 0), new_point
        )
        fresh = image + offset
        stale = state.stale
        return _Descent(
            state.step + 1,
            jnp.where(stale, point, new_point),
            jnp.where(stale, fresh, new_slope),
            jnp.where(
                stale,
                jnp.where(free, fresh, 0),
                jnp.where(in_face, conjugate, new_inside),
            ),
            bounded & ~stale,
        )

    zero = 0 * offset
    start = _Descent(jnp.int32(0), zero, offset, zero, zero[:, :1] > 0)
    return lax.while_loop(unfinished, step, start).point


class Kept(NamedTuple):
    """Of projections J'v of J'u, summed: <J'u, J'v> and |J'v|^2, relative to tr G."""

    wanted: Number
    squares: Number


def kept(gramian: Gramian, lower: PerProblem, weights: PerProblem) -> Kept:
    """What is left of projections; both without regularization."""
    image = product(weights, ratio(gramian, jnp.trace(gramian)))
    return Kept(jnp.sum(image * lower), jnp.sum(image * weights))


def is_left_over(projections: Kept) -> Flag:
    """Whether the regularization has taken more than half of projections, ().

    A projection of J'u is what J'u has in its direction: the two numbers are equal.
    Regularization makes it shorter, and points it against rows that it should not
    oppose.
    """
    return projections.wanted > 2 * projections.squares


def _largest_eigenvalue(matrix: Gramian, steps: int = 10) -> Number:
    """The largest eigenvalue to a few per cent, from below; (B, B) with unit diagonal.

    Powers of the heaviest column: a fixed step is safe below twice its inverse.
    """
    heaviest = matrix[jnp.argmax(jnp.sum(matrix * matrix, 1))]

    def power(_: int, vector: Array) -> Array:
        image = product(matrix, vector)
        return image / jnp.linalg.norm(image)

    vector = lax.fori_loop(0, steps, power, heaviest / jnp.linalg.norm(heaviest))
    return jnp.linalg.norm(product(matrix, vector))
