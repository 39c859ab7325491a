"""Fair division of a step among rows: a scaling of a Gramian [B, B], along a path.

What the folder says of its problems holds here too.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from consensus_optax._rows.varying import varying_like
from consensus_optax._rules.solvers._solution import (
    Solution,
    cosines,
    factor_of,
    product,
    ratio,
    rounding,
    solution,
)
from consensus_optax._typing import Array, Flag, Gramian, Number, PerRow

# How far from the path a step may end: logarithms of the products of gains and powers,
# and both sides of the equation. Beyond it, a shorter step; a shorter one than the
# last, and the path is lost.
_OFF_PRODUCTS, _OFF, _SHORTEST = 0.2, 0.04, 1e-5


class _Iterate(NamedTuple):
    """Where the path is.

    Attributes:
      step: how many have been tried.
      v: logarithms of the weights.
      s: logarithms of the gains, which are Cv in the end.
      place: of the path, from 0 to 1; below, before its start.
      stride: the next step's.
      residual: of the equation there.
      alive: whether there is a step to take.
    """

    step: Array
    v: Array
    s: Array
    place: Number
    stride: Number
    residual: Number
    alive: Flag


def fair_division(
    gramian: Gramian, counts: PerRow, alpha: Number, max_steps: int = 80
) -> Solution:
    r"""Weights v > 0 with (Gv)_i = (c_i / v_i)^(1 / alpha) for every row of count c_i.

    (Gv)_i is what the step J'v gains for row i; v minimises

    .. math:: \tfrac12 v^T G v - \sum_i \frac{c_i^{1/\alpha} v_i^{1 - 1/\alpha}}
        {1 - 1/\alpha}

    (with a logarithm at alpha = 1), which is convex. Newton's method on weights and
    gains together: s = Cv and log s + log v / alpha given, with C the cosines between
    the rows, since lengths only rescale v. It ends from anywhere for alpha = 1, where
    lengths do not matter; from there the solutions of alphas up or down to the one
    asked for are followed, two Newton steps each, so far apart as they allow. Weights
    and gains are held as logarithms: a row that gains twice the others has 2^-alpha of
    their weight.

    Where the rows cancel there is no solution and v grows without bound: the residual
    is then small all the same, and :func:`cancels` tells.

    Args:
      gramian: (B, B).
      counts: (B,) positive, 0 for absent rows.
      alpha: () positive.
      max_steps: bound on the number of steps, each with two Cholesky factors; the loop
        ends at convergence: about 4 steps, 10 to 30 where alpha is far from 1 and rows
        differ in length by powers of ten.

    Returns:
      Weights (B,), 0 for absent and for zero rows. The residual compares both sides of
      the equation, relative to what the left one would be if all cosines were positive.
    """
    gramian, counts, alpha = lax.stop_gradient((gramian, counts, alpha))
    matrix, lengths = cosines(gramian)
    active = (counts > 0) & (lengths > 0)
    matrix = jnp.where(active[:, None] & active[None, :], matrix, 0)
    matrix += jnp.diag(1 - matrix.diagonal())  # rows apart have the answer 1
    shift = rounding(matrix)
    num_active = jnp.sum(active).astype(matrix.dtype)

    def logarithms(x: Array) -> tuple[Array, Number]:
        """About their middle, and that."""
        logs = jnp.log(jnp.where(active, x, 1))
        middle = ratio(logs.sum(), num_active)
        return jnp.where(active, logs - middle, 0), middle

    (of_counts, count), (of_lengths, length) = map(logarithms, (counts, lengths))
    target = lambda power: power * of_counts + (power - 1) * of_lengths
    eps = jnp.finfo(gramian.dtype).eps

    def violation(v: Array, power: Number) -> Number:
        weights, wanted = jnp.exp(v), jnp.exp(target(power) - power * v)
        gap = jnp.abs(product(matrix, weights) - wanted)
        reach = jnp.sum(jnp.abs(matrix) * weights[None, :], 1)
        return jnp.max(gap / (reach + wanted))

    def newton(v: Array, s: Array, power: Number) -> tuple[Array, Array]:
        weights, gains = jnp.exp(v), jnp.exp(s)
        missing = target(power) - s - power * v
        side = gains - product(matrix, weights) + gains * missing
        # (C + diag(power gains / weights)) change = side, in the scale of its diagonal
        root = jnp.exp(jnp.clip((v - s - jnp.log(power)) / 2, -40, 40))
        system = root[:, None] * matrix * root[None, :]
        system += jnp.diag(1 + shift * root**2)
        # the same twice, of which one is a float: root^2 power gains = weights
        change = cho_solve((factor_of(system), True), root * side)
        of_small, of_large = change / (root * gains * power), change * root / weights
        dv = jnp.where(root < 1, of_small, of_large)
        ds = missing - power * dv
        return v + _up(dv), s + _up(ds)

    def power_at(place: Number) -> Number:
        return jnp.exp(-place * jnp.log(alpha))

    def step(it: _Iterate) -> _Iterate:
        before, ended = it.place < 0, it.place >= 1
        ahead = jnp.where(before, 0, jnp.minimum(it.place + it.stride, 1))
        power = power_at(ahead)
        twice = lambda _, at: newton(at[0], at[1], power)  # holds one system
        v, s = lax.fori_loop(0, 2, twice, (it.v, it.s))
        residual = violation(v, power)
        off = jnp.max(jnp.abs(target(power) - s - power * v))
        near = (residual < _OFF) & (off < _OFF_PRODUCTS)
        taken = jnp.where(ended, residual < it.residual, near)
        taken = jnp.where(before, jnp.isfinite(residual), taken)
        pick = lambda new, old: jnp.where(taken, new, old)
        stride = jnp.where(taken, 2, 0.25) * it.stride
        place = jnp.where(before & ~near, it.place, ahead)
        return _Iterate(
            it.step + 1,
            pick(v, it.v),
            pick(s, it.s),
            pick(place, it.place),
            jnp.minimum(jnp.where(ended, it.stride, stride), 1),
            pick(residual, it.residual),
            jnp.where(ended, taken, stride > _SHORTEST),
        )

    def unfinished(it: _Iterate) -> Flag:
        done = (it.place >= 1) & (it.residual <= 2 * eps)
        return (it.step < max_steps) & it.alive & ~done

    power = 1 / alpha
    one = jnp.ones((), matrix.dtype)
    begin = of_counts / 2  # the answer for rows at right angles
    start = _Iterate(jnp.int32(0), begin, begin, -one, one, one, one > 0)
    start = varying_like(start, gramian, counts, alpha)
    end = lax.while_loop(unfinished, step, start)
    scale = jnp.exp((power * count + (power - 1) * length) / (1 + power))
    weights = jnp.where(
        active, jnp.exp(end.v) * scale / jnp.where(active, lengths, 1), 0
    )
    return solution(weights, violation(end.v, power))


def _up(change: Array) -> Array:
    """Of a logarithm: what grows does by as much itself, what falls stays above 0."""
    return jnp.where(change > 0, jnp.log1p(jnp.maximum(change, 0)), change)
