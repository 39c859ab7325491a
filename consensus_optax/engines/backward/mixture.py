"""Rows that are mixed, each time that those they are made of are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from consensus_optax._rows.finite import finite_rows
from consensus_optax._rows.varying import varying_like
from consensus_optax._rows.verbs import AnyLeaf, Leaf, Mixed, as_array
from consensus_optax._rules.kinds import Roster
from consensus_optax._typing import Array


class Mixture(NamedTuple):
    """What mixed rows are made of.

    Attributes:
      matrix: (B', B), zero in the columns of absent rows.
      before: the rows that are computed, all of which are known.
      tested: whether mixed rows are taken to be finite, as those they are made of are.
    """

    matrix: Array
    before: Roster
    tested: bool = True

    def of(self, rows: Leaf) -> Mixed:
        """The same of some coordinates of all rows."""
        return Mixed(self.matrix, rows, self.before.order)

    def scaled(self, factors: Array, tested: bool) -> Mixture:
        """Mixed row i times factors[i]."""
        return Mixture(self.matrix * factors[:, None], self.before, tested)

    def mixed(self, matrix: Array) -> Mixture:
        """The same mixed once more."""
        return self._replace(matrix=_product(matrix, self.matrix), tested=True)

    def bad(self, leaves: Sequence[AnyLeaf], dtype: Any) -> Array:
        """Above 0 for mixed rows that are not finite, (B',) int32."""
        none = jnp.zeros(self.matrix.shape[:1], jnp.int32)
        if self.tested:
            return varying_like(none, leaves)
        arrays: Any = [as_array(leaf, dtype) for leaf in leaves]
        return (~finite_rows(arrays, dtype)).astype(jnp.int32)

    def weights(self, given: Array) -> Array:
        """Of the rows that are computed, for a combination of mixed ones."""
        return _product(given, self.matrix)


def _product(x: Array, y: Array) -> Any:
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)
