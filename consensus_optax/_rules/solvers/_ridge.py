"""A damped linear system of the Gramian."""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.solvers._solution import Solution, product, solution
from consensus_optax._typing import Gramian, PerRow


def ridge(gramian: Gramian, damping: PerRow, aim: PerRow) -> Solution:
    r"""Solves :math:`(G + \mathrm{diag}(\lambda)) x = b`, (B, B), (B,) and (B,).

    By a Cholesky factorization and one step of refinement; nan where that fails, or
    leaves more than a hundredth of b: of a singular system the last pivots are
    rounding, as often above 0 as below. The residual is relative to b.
    """
    system = gramian + jnp.diag(damping)
    factors = cho_factor(system)
    found = cho_solve(factors, aim)
    found = found + cho_solve(factors, aim - product(system, found))
    left = jnp.linalg.norm(product(system, found) - aim)
    residual = left / positive_or_one(jnp.linalg.norm(aim))
    return solution(jnp.where(residual <= 0.01, found, jnp.nan), residual)
