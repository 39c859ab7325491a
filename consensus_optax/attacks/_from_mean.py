"""What attacks on means share: equal rows made of every entry's mean and deviation."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._typing import Array, Tree

Make = Callable[[Array, Array], Array]


def from_mean(honest: Tree, num_byzantine: int, make: Make) -> Tree:
    """Rows of all attackers, made of (mean, standard deviation) of the honest ones.

    Args:
      honest: rows.
      num_byzantine: f.
      make: of two arrays of parameter shape, float32 at least, to a row.
    """
    _check.count("num_byzantine", num_byzantine)
    dtype = verbs.decision_dtype(honest)

    def rows(leaf: Array) -> Array:
        wide = leaf.astype(dtype)
        row = make(wide.mean(0), wide.std(0)).astype(leaf.dtype)
        return jnp.broadcast_to(row, (num_byzantine, *row.shape))

    return jax.tree.map(rows, honest)
