"""What every solver returns, and the arithmetic that all of them share."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from consensus_optax._rules.arithmetic import positive_or_one, root
from consensus_optax._typing import Array, Flag, Gramian, Number, PerRow, Tree

product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


class SolverState(NamedTuple):
    """State of a rule that solves a small convex problem at every step.

    Attributes:
      residual: () float32, how far the last solution is from the conditions of
        optimality; without units, so that 1e-5 is like a cosine of 1e-5.
      converged: () bool, whether that is at most 1e-5 (1e-10 in float64). Where it is
        not, the last iterate is used all the same.
    """

    residual: Number
    converged: Flag


class Solution(NamedTuple):
    """A solution and how good it is."""

    weights: Array
    state: SolverState


def unsolved(params: Tree, dtype: Any) -> SolverState:
    """The state before the first step."""
    del params, dtype
    return SolverState(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.bool_))


def solution(weights: Array, residual: Number) -> Solution:
    """A solution judged by its residual; nan is not converged."""
    small = residual <= (1e-10 if weights.dtype == jnp.float64 else 1e-5)
    return Solution(weights, SolverState(residual.astype(jnp.float32), small))


def not_better(state: SolverState, residual: Number) -> SolverState:
    """The state where the update has a residual of its own: the larger one counts."""
    own = solution(residual, residual).state
    worse = jnp.maximum(state.residual, own.residual)
    return SolverState(worse, state.converged & own.converged)


def proven(state: SolverState, known: Flag) -> SolverState:
    """The state, or that of a solution without error where one is known."""
    return SolverState(jnp.where(known, 0, state.residual), state.converged | known)


def ratio(x: Array, y: Array) -> Array:
    """The quotient x / y, and 0 where y is not positive."""
    return jnp.where(y > 0, x / positive_or_one(y), 0)


def cosines(gramian: Gramian) -> tuple[Gramian, PerRow]:
    """The Gramian of the rows' directions, 0 for zero rows, and the rows' lengths."""
    lengths = root(gramian.diagonal())
    return ratio(ratio(gramian, lengths[:, None]), lengths[None, :]), lengths


def rounding(matrix: Gramian) -> Number:
    """What the diagonal must grow by for a Cholesky factor to exist, (), relative.

    For a Gramian of unit rows: a multiple of its largest eigenvalue's rounding.
    """
    return jnp.finfo(matrix.dtype).eps * (8 + 2 * jnp.linalg.norm(matrix))


def factor_of(matrix: Gramian) -> Gramian:
    """The lower Cholesky factor of a symmetric matrix, no copy of it made symmetric."""
    return lax.linalg.cholesky(matrix, symmetrize_input=False)


def cancels(gramian: Gramian, weights: PerRow) -> Flag:
    """Whether the weighted rows cancel as far as a Gramian can tell, () bool.

    The length of their sum is compared with the sum of their lengths: 1e-4 of it in
    float64, 7e-4 in float32, below which its square is rounding.
    """
    lengths = root(gramian.diagonal())
    terms = jnp.abs(weights) * lengths
    shares = ratio(weights, terms.sum())
    square = product(shares, product(gramian, shares))
    return square <= jnp.maximum(1e-8, 4 * jnp.finfo(gramian.dtype).eps)
