"""Stationary points over the simplex where a model bends downwards in places.

What the folder says of its problems holds here too, but that the matrix may have
negative eigenvalues.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from consensus_optax._rules.solvers._simplex import over_simplex
from consensus_optax._rules.solvers._solution import Solution, product, ratio, solution
from consensus_optax._typing import Array, Gramian, PerRow


class _Round(NamedTuple):
    """Rounds so far, weights, and their violation."""

    count: Array
    x: Array
    residual: Array


def stationary_on_simplex(
    slope: PerRow, hessian: Gramian, start: PerRow, max_rounds: int = 50
) -> Solution:
    r"""Lowers p'x + x'Hx / 2 over the simplex until no row promises more.

    Every round minimises the convex part of the model with the concave part replaced
    by its tangent, which lies above it: the model never rises, from ``start`` on. One
    round does where H has no negative eigenvalue, and the result is the minimum then;
    otherwise it is a stationary point.

    Args:
      slope: p, (B,).
      hessian: H, (B, B) symmetric, 0 for absent rows.
      start: (B,) weights with sum 1, positive for the rows present, 0 for absent ones.
      max_rounds: bound on the number of rounds; the loop ends at convergence.

    Returns:
      Weights (B,). The residual is the largest violation of "no row's slope is below
      the mean slope", relative to the largest entries of p and H.
    """
    slope, hessian, start = lax.stop_gradient((slope, hessian, start))
    present = start > 0
    unit = jnp.max(jnp.abs(slope)) + jnp.max(jnp.abs(hessian))
    slope, hessian = ratio(slope, unit), ratio(hessian, unit)
    values, vectors = jnp.linalg.eigh(hessian)
    eps = jnp.finfo(slope.dtype).eps
    # A little of a square on both sides, so that a plane has a convex part too.
    square = jnp.diag(jnp.where(present, 8 * eps, 0))
    part = lambda kept: product(vectors * kept[None, :], vectors.T) + square
    convex, concave = part(jnp.maximum(values, 0)), part(jnp.maximum(-values, 0))

    def violation(x: Array) -> Array:
        gradient = slope + product(hessian, x)
        return jnp.max(jnp.where(present, product(x, gradient) - gradient, 0))

    def improve(last: _Round) -> _Round:
        tangent = slope - product(concave, last.x)
        x = over_simplex(convex, present, tangent).weights
        return _Round(last.count + 1, x, violation(x))

    def unfinished(last: _Round) -> Array:
        return (last.count < max_rounds) & (last.residual > 4 * eps)

    first = _Round(jnp.int32(0), start, violation(start))
    end = lax.while_loop(unfinished, improve, first)
    return solution(end.x, end.residual)
