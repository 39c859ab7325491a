"""Minimisation over the simplex on a Gramian [B, B], by an interior-point method.

What the folder says of its problems holds here too.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
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
from consensus_optax._typing import Array, Gramian, Marked, Number, PerRow

# Share of the gap that the next step aims at.
_CENTERING = 0.2
# Shares of the longest step that the line search tries.
_STRIDES = np.array([1, 0.8, 0.6, 0.4, 0.25, 0.15, 0.08, 0.04, 0.02, 0.01])


class _Problem(NamedTuple):
    """A problem at unit scale, but for the Gramian: a copy of it would be one more.

    Attributes:
      gramian: (B, B) as given.
      unit: () its mean diagonal over the rows present.
      raised: (B,) what is added to the diagonal, after division, if f is the norm.
      root: (B, B) R with R'R = the matrix that this makes if f is the norm, else None.
      slope: (B,) p, larger for absent rows than any other row's slope can be.
      bend: () the factor of f.
      shift: (B,) what a diagonal must grow by for a Cholesky factor to exist in spite
        of rounding.
      present: (B,) bool.
    """

    gramian: Array
    unit: Array
    raised: Array
    root: Array | None
    slope: Array
    bend: Array
    shift: Array
    present: Array


class _Iterate(NamedTuple):
    """Weights x > 0, multipliers z > 0 of x >= 0 and y of sum x = 1."""

    step: Array
    x: Array
    z: Array
    y: Array
    residual: Array
    alive: Array


def over_simplex(
    gramian: Gramian,
    present: Marked,
    linear: PerRow | None = None,
    radius: Number | None = None,
    max_steps: int = 40,
) -> Solution:
    r"""Minimises p'x + f(x) over the simplex: x >= 0, sum x = 1.

    f(x) = x'Gx / 2, or ``radius`` times :math:`\sqrt{x'Gx}`, the length of J'x.

    A primal-dual interior-point method: one Cholesky factor of [B, B] a step, and 10
    to 20 steps to float32 precision whatever the condition of G. The norm is smoothed
    where it is 0, by less and less as the gap closes (its cone's barrier, with the
    height eliminated); there a line search on the barrier function chooses the step.

    Args:
      gramian: (B, B).
      present: (B,) bool; absent rows get weight 0.
      linear: p, (B,), or None for 0.
      radius: (), or None for half the square.
      max_steps: bound on the number of steps; the loop ends at convergence.

    Returns:
      Weights (B,). The residual is the largest violation of "no row's slope is below
      the mean slope", relative to the lengths of that row and of the rows in use.
    """
    problem = _at_unit_scale(*lax.stop_gradient((gramian, present, linear, radius)))
    size, dtype = gramian.shape[0], gramian.dtype
    x = jnp.full_like(problem.slope, 1 / size)
    gradient = _gradient(problem, x)
    spread = jnp.max(gradient) - jnp.min(gradient)
    margin = 0.1 * spread + 1e-2 * jnp.max(jnp.abs(gradient)) + 1e-6
    y = jnp.min(gradient) - margin
    residual = _violation(problem, x)
    start = _Iterate(jnp.int32(0), x, gradient - y, y, residual, jnp.isfinite(residual))
    enough = jnp.finfo(dtype).eps / 2

    def unfinished(iterate: _Iterate) -> Array:
        return (
            (iterate.step < max_steps) & iterate.alive & ~(iterate.residual <= enough)
        )

    end = lax.while_loop(unfinished, lambda it: _advance(problem, it), start)
    return solution(_on_simplex(problem, end.x), end.residual)


def length_of(gramian: Gramian, weights: PerRow) -> Number:
    """The length of J'x as a problem with a radius has it, ().

    That is a little more than 0 where the rows cancel. What is divided by any other
    number no longer meets the conditions that the problem's solution meets.
    """
    count = jnp.maximum(jnp.sum(gramian.diagonal() > 0), 1).astype(gramian.dtype)
    mean = jnp.trace(gramian) / count
    root = _root(gramian, mean, _raised(_shift(gramian, mean)))
    return jnp.sqrt(mean) * jnp.linalg.norm(product(root, weights))


def _shift(gramian: Gramian, unit: Number) -> PerRow:
    """What the diagonal of G / unit must grow by for a Cholesky factor to exist."""
    return rounding(cosines(gramian)[0]) * ratio(gramian.diagonal(), unit)


def _raised(shift: PerRow) -> PerRow:
    """The same where rows may be zero."""
    return jnp.where(shift > 0, shift, 1e-3 * jnp.finfo(shift.dtype).eps)


def _root(gramian: Gramian, unit: Number, raised: PerRow) -> Gramian:
    """R with R'R = G / unit and a raised diagonal: no x'Gx is lost to rounding."""
    return factor_of(ratio(gramian, unit) + jnp.diag(raised)).T


def _at_unit_scale(
    gramian: Array, present: Array, linear: Array | None, radius: Array | None
) -> _Problem:
    """Divides the objective by its largest coefficient."""
    dtype, size = gramian.dtype, gramian.shape[0]
    count = jnp.maximum(jnp.sum(present), 1).astype(dtype)
    mean = jnp.trace(gramian) / count
    slope = jnp.zeros(size, dtype) if linear is None else ratio(linear, mean)
    slope = jnp.where(present, slope, 0)
    bend = jnp.ones((), dtype) if radius is None else ratio(radius, jnp.sqrt(mean))
    shift = _shift(gramian, mean)
    raised, root = jnp.zeros_like(shift), None
    if radius is not None:
        raised = _raised(shift)
        root = _root(gramian, mean, raised)
    unit = bend + jnp.max(jnp.abs(slope))
    slope = jnp.where(present, ratio(slope, unit), 8)
    bend = ratio(bend, unit)
    return _Problem(gramian, mean, raised, root, slope, bend, shift, present)


def _products(problem: _Problem, x: PerRow) -> tuple[PerRow, Number]:
    """Gx and x'Gx."""
    if problem.root is None:
        image = ratio(product(problem.gramian, x), problem.unit)
        return image, product(x, image)
    short = product(problem.root, x)
    return product(short, problem.root), product(short, short)


def _length(problem: _Problem, square: Array, center: Array) -> tuple[Array, Array]:
    """Length of J'x smoothed at the scale of ``center``, and its root part."""
    part = jnp.sqrt(center**2 + problem.bend**2 * square)
    return ratio(center + part, problem.bend), part


def _curvature(problem: _Problem, square: Array, center: Array) -> tuple[Array, Array]:
    """Factors of G and of (Gx)(Gx)' in the Hessian of f; the first gives its slope."""
    if problem.root is None:
        return problem.bend, jnp.zeros_like(square)
    length, part = _length(problem, square, center)
    return ratio(problem.bend, length), -ratio(problem.bend**2, length**2 * part)


def _gradient(problem: _Problem, x: PerRow) -> PerRow:
    """Slopes of the objective, (B,)."""
    image, square = _products(problem, x)
    none = jnp.zeros_like(square)
    return problem.slope + _curvature(problem, square, none)[0] * image


def _on_simplex(problem: _Problem, x: PerRow) -> PerRow:
    """Weights of the rows present, with sum 1."""
    x = jnp.where(problem.present, x, 0)
    return ratio(x, x.sum())


def _violation(problem: _Problem, x: PerRow) -> Number:
    """How far below the mean slope any row's slope is, without units."""
    x = _on_simplex(problem, x)
    slope = jnp.abs(problem.slope)
    gradient = _gradient(problem, x)
    squares = ratio(problem.gramian.diagonal(), problem.unit)
    lengths = jnp.sqrt(squares + problem.raised)
    used = product(x, lengths)
    reach = problem.bend * (lengths + used)
    if problem.root is None:
        reach *= used
    below = jnp.where(problem.present, product(x, gradient) - gradient, 0)
    return jnp.max(ratio(below, reach + slope + product(x, slope)))


def _longest(values: Array, moves: Array) -> Array:
    """The longest step up to 1 that keeps values >= 0."""
    falling = moves < 0
    return jnp.min(
        jnp.where(falling, -values / jnp.where(falling, moves, -1), 1), initial=1
    )


def _advance(problem: _Problem, iterate: _Iterate) -> _Iterate:
    """One Newton step towards a fifth of the gap."""
    _, x, z, y, _, _ = iterate
    center = _CENTERING * jnp.mean(x * z)
    image, square = _products(problem, x)
    first, second = _curvature(problem, square, center)
    dual = y + z - problem.slope - first * image
    system = ratio(first, problem.unit) * problem.gramian
    system += second * jnp.outer(image, image)
    system += jnp.diag(z / x + first * (problem.shift + problem.raised))
    factor = factor_of(system)
    sides = jnp.stack([dual + center / x - z, jnp.ones_like(x)], 1)
    free, unit = cho_solve((factor, True), sides).T
    dy = (1 - x.sum() - free.sum()) / unit.sum()
    dx = free + dy * unit
    dz = center / x - z - z / x * dx
    stride = 0.99 * jnp.minimum(_longest(x, dx), _longest(z, dz))
    if problem.root is not None:
        stride = _search(problem, problem.root, (x, dx), y, stride, center)
    new = (x + stride * dx, z + stride * dz, y + stride * dy)
    alive = jnp.all(jnp.isfinite(new[0])) & jnp.all(jnp.isfinite(new[1])) & (center > 0)
    x, z, y = (jnp.where(alive, a, b) for a, b in zip(new, (x, z, y), strict=True))
    return _Iterate(iterate.step + 1, x, z, y, _violation(problem, x), alive)


def _search(
    problem: _Problem,
    root: Array,
    line: tuple[Array, Array],
    y: Array,
    longest: Array,
    center: Array,
) -> Array:
    """The longest of a few steps with half the best decrease of the barrier function.

    Differences are formed without cancellation: the length along a line is the root
    of a quadratic in the step.
    """
    x, dx = line
    strides = longest * jnp.asarray(_STRIDES, x.dtype)
    here, along = product(root, x), product(root, dx)
    square = product(here, here)
    growth = strides * (2 * product(here, along) + strides * product(along, along))
    old, part = _length(problem, square, center)
    new, new_part = _length(problem, jnp.maximum(square + growth, 0), center)
    moves = dx / x
    barrier = jnp.log1p(jnp.maximum(strides[:, None] * moves[None, :], -0.999)).sum(1)
    merit = (
        strides * product(problem.slope - y, dx)
        + problem.bend**2 * ratio(growth, part + new_part)
        - center * (jnp.log(ratio(new, old)) + barrier)
    )
    largest = (
        product(jnp.abs(problem.slope - y), jnp.abs(dx))
        + problem.bend * jnp.linalg.norm(along)
        + center * jnp.sum(jnp.abs(moves))
    )
    noise = 4 * jnp.finfo(x.dtype).eps * (strides * largest + center)
    best = jnp.min(merit)
    return strides[jnp.argmax(merit <= jnp.where(best < 0, 0.5 * best, best) + noise)]
