"""The Gramian of a tree of rows, which most diagnostics start from."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._rows.explicit import automatic
from consensus_optax._rows.outer_product import is_outer_product
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
    leaves, dtype = floating_rows(rows)

    def total(leaves: list[Any]) -> Array:
        parts = [verbs.gramian(leaf, dtype) for leaf in leaves]
        return sum(parts[1:], parts[0])

    return automatic(total, (leaves,), PartitionSpec())


def floating_rows(rows: Tree) -> tuple[list[Any], Any]:
    """The leaves that carry a gradient, one at least, and the dtype of decisions."""
    leaves, dtype = as_rows(rows, None)
    if not leaves:
        raise ValueError("`rows` must have a floating leaf; got none")
    return leaves, dtype


def checked_gramian(gramian: Any) -> Array:
    """The Gramian as a floating array.

    Raises:
      ValueError: it is none: rows, most often, of which it can be made.
    """
    shape = getattr(gramian, "shape", ())
    if is_outer_product(gramian) or len(shape) != 2 or shape[0] != shape[1]:
        array = isinstance(gramian, jax.Array | np.ndarray)
        raise ValueError(
            "`gramian` must be an array (B, B), the inner products of rows; got "
            f"{f'shape {shape}' if array else type(gramian).__name__}. "
            "`co.diagnostics.gramian(rows)` makes it of a tree of rows."
        )
    numbers = jnp.asarray(gramian)
    if jnp.issubdtype(numbers.dtype, jnp.floating):
        return numbers
    if not jnp.issubdtype(numbers.dtype, jnp.integer):
        _check.fail("gramian", "an array of real numbers", str(numbers.dtype))
    return numbers.astype(jnp.float32)


def present(gramian: Array, weights: Array | None) -> tuple[Array, Array]:
    """The Gramian with 0 for absent pairs, and weights with 0 for absent rows.

    Absent: a weight that is not positive, or a diagonal entry that is not finite.
    """
    gramian = checked_gramian(gramian)
    weights = checked_weights(weights, gramian.shape[0], gramian.dtype)
    there = (weights > 0) & jnp.isfinite(gramian.diagonal())
    pairs = there[:, None] & there[None, :]
    return jnp.where(pairs, gramian, 0), jnp.where(there, weights, 0)
