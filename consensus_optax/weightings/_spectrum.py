"""Eigenvalues of a Gramian, and which of them are not rounding."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from consensus_optax._rules.kinds import Roster
from consensus_optax._rules.solvers import product, ratio
from consensus_optax._typing import Array


class Spectrum(NamedTuple):
    """A Gramian (B, B), its eigenvalues (B,) and what belongs to them.

    Attributes:
      matrix: (B, B).
      values: (B,) ascending.
      vectors: (B, B), one in each column.
      kept: (B,) bool, which eigenvalues are not rounding.
    """

    matrix: Array
    values: Array
    vectors: Array
    kept: Array

    def apply(self, values: Array, vector: Array) -> Array:
        """V diag(values) V' vector, over the eigenvalues that count."""
        inner = product(self.vectors.T, vector)
        return product(self.vectors, jnp.where(self.kept, values, 0) * inner)

    def pseudo_inverse_norm(self) -> Array:
        """One over the least eigenvalue that counts, 0 if none does."""
        least = jnp.min(jnp.where(self.kept, self.values, jnp.inf))
        return jnp.where(jnp.any(self.kept), 1 / least, 0)

    def pseudo_inverse(self, vector: Array) -> Array:
        """The least-squares solution of least length, refined once.

        Eigenvectors are known to some units of rounding; what the solution leaves over
        is known to one.
        """
        inverse = ratio(jnp.ones_like(self.values), self.values)
        rough = self.apply(inverse, vector)
        missing = vector - product(self.matrix, rough)
        return rough + self.apply(inverse, missing)


def spectrum(matrix: Array, roster: Roster) -> Spectrum:
    """Eigenvalues above the rounding of a Gramian of N rows: 4 N eps of the largest."""
    values, vectors = jnp.linalg.eigh(matrix)
    count = jnp.sum(roster.present).astype(matrix.dtype)
    least = 4 * count * jnp.finfo(matrix.dtype).eps * jnp.max(values)
    return Spectrum(matrix, values, vectors, values > jnp.maximum(least, 0))
