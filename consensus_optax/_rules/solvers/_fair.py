"""Fair division of a step among rows: a scaling of a Gramian [B, B] by Newton's method.

What the folder says of its problems holds here too.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from consensus_optax._rules.solvers._solution import (
    Solution,
    cosines,
    factor_of,
    product,
    ratio,
    rounding,
    solution,
)
from consensus_optax._typing import Array, Gramian, Number, PerRow


class _Iterate(NamedTuple):
    """Weights v > 0 and gains s > 0, which end as s = Cv."""

    step: Array
    v: Array
    s: Array
    residual: Array
    alive: Array


def fair_division(
    gramian: Gramian, counts: PerRow, alpha: Number, max_steps: int = 60
) -> Solution:
    r"""Weights v > 0 with (Gv)_i = (c_i / v_i)^(1 / alpha) for every row of count c_i.

    (Gv)_i is what the step J'v gains for row i; v minimises

    .. math:: \tfrac12 v^T G v - \sum_i \frac{c_i^{1/\alpha} v_i^{1 - 1/\alpha}}
        {1 - 1/\alpha}

    (with a logarithm at alpha = 1), which is convex. Newton's method on weights and
    gains together: s = Cv and log s + log v / alpha given, with C the cosines between
    the rows, since lengths only rescale v. About 10 steps, each with one Cholesky
    factor.

    Where the rows cancel there is no solution and v grows without bound: the residual
    is then small all the same, and :func:`cancels` tells.

    Args:
      gramian: (B, B).
      counts: (B,) positive, 0 for absent rows.
      alpha: () positive.
      max_steps: bound on the number of steps; the loop ends at convergence.

    Returns:
      Weights (B,), 0 for absent and for zero rows. The residual compares both sides of
      the equation, relative to what the left one would be if all cosines were positive.
    """
    gramian, counts, alpha = lax.stop_gradient((gramian, counts, alpha))
    matrix, lengths = cosines(gramian)
    active = (counts > 0) & (lengths > 0)
    matrix = jnp.where(active[:, None] & active[None, :], matrix, 0)
    matrix += jnp.diag(1 - matrix.diagonal())  # rows apart have the answer 1
    power = 1 / alpha
    safe = lambda x: jnp.where(active, x, 1)
    target = power * jnp.log(safe(counts)) + (power - 1) * jnp.log(safe(lengths))
    middle = ratio(target.sum(), jnp.sum(active).astype(target.dtype))
    target = jnp.where(active, target - middle, 0)
    shift = rounding(matrix)
    eps = jnp.finfo(gramian.dtype).eps

    def violation(v: Array) -> Array:
        wanted = jnp.exp(target - power * jnp.log(v))
        gap = jnp.abs(product(matrix, v) - wanted)
        reach = jnp.sum(jnp.abs(matrix) * v[None, :], 1)  # no second matrix is held
        return jnp.max(gap / (reach + wanted))

    def longest(values: Array, moves: Array) -> Array:
        falling = moves < 0
        bound = -0.9 * values / jnp.where(falling, moves, -1)
        return jnp.minimum(jnp.min(jnp.where(falling, bound, 1)), 1)

    def step(it: _Iterate) -> _Iterate:
        v, s = it.v, it.s
        missing = target - jnp.log(s) - power * jnp.log(v)
        system = matrix + jnp.diag(power * s / v + shift)
        side = s - product(matrix, v) + s * missing
        dv = cho_solve((factor_of(system), True), side)
        ds = s * (missing - power * dv / v)
        stride = jnp.minimum(longest(v, dv), longest(s, ds))
        new_v, new_s = v + stride * dv, s + stride * ds
        alive = jnp.all(jnp.isfinite(new_v)) & jnp.all(jnp.isfinite(new_s))
        alive &= jnp.all(new_v > 0) & jnp.all(new_s > 0)
        v, s = jnp.where(alive, new_v, v), jnp.where(alive, new_s, s)
        return _Iterate(it.step + 1, v, s, violation(v), alive)

    def unfinished(it: _Iterate) -> Array:
        return (it.step < max_steps) & it.alive & ~(it.residual <= 2 * eps)

    v = jnp.exp(target / (1 + power))
    residual = violation(v)
    start = _Iterate(jnp.int32(0), v, v, residual, jnp.isfinite(residual))
    end = lax.while_loop(unfinished, step, start)
    scale = jnp.exp(middle / (1 + power))
    weights = jnp.where(active, end.v * scale / safe(lengths), 0)
    return solution(weights, end.residual)
