"""The Gramian of a tree of rows, which most diagnostics start from."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from consensus_optax._rows import verbs
from consensus_optax._rows.explicit import automatic
from consensus_optax._rows.stack import as_rows, checked_weights
from consensus_optax._typing import Array, Tree


def gramian(rows: Tree) -> Array:
    r"""Inner products of all pairs of rows, over all leaves.

    .. math:: G = J J^\top

    Guarantees: symmetric; float32 sums at least, whatever the rows' dtype; outer
    products stay factored where that is cheaper.
    Edge cases: a row with a non-finite entry has a non-finite diagonal, which the
    functions of this module take as absent.

    Args:
      rows: tree of (B, \*shape) leaves; leaves that carry no gradient are left out.

    Returns:
      (B, B).

    Raises:
      ValueError: no leaf carries a gradient.

    Cost: B^2 P multiplications, or fewer where rows are factored.

    Examples:
      >>> import jax.numpy as jnp
      >>> gramian({"w": jnp.array([[1., 2.], [0., 3.]])}).tolist()
      [[5.0, 6.0], [6.0, 9.0]]
    """
    leaves, dtype = as_rows(rows, None)
    if not leaves:
        raise ValueError("`rows` must have a floating leaf; got none")

    def total(leaves: list[Any]) -> Array:
        parts = [verbs.gramian(leaf, dtype) for leaf in leaves]
        return sum(parts[1:], parts[0])

    return automatic(total, (leaves,), PartitionSpec())


def present(gramian: Array, weights: Array | None) -> tuple[Array, Array]:
    """The Gramian with 0 for absent pairs, and weights with 0 for absent rows.

    Absent: a weight that is not positive, or a diagonal entry that is not finite.
    """
    weights = checked_weights(weights, gramian.shape[0], gramian.dtype)
    there = (weights > 0) & jnp.isfinite(gramian.diagonal())
    pairs = there[:, None] & there[None, :]
    return jnp.where(pairs, gramian, 0), jnp.where(there, weights, 0)
