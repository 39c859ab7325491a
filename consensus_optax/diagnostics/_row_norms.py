"""The length of every row."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax._rows import verbs
from consensus_optax._rows.explicit import of_each_row
from consensus_optax._typing import Array, Tree
from consensus_optax.diagnostics._gramian import floating_rows


def row_norms(rows: Tree) -> Array:
    r"""The Euclidean norm of every row, over all leaves.

    .. math:: \|g_i\|

    Guarantees: float32 sums at least, whatever the rows' dtype; of factored rows from
    products of their factors, where that takes fewer operations than the row.
    Edge cases: a row with a non-finite entry has a non-finite norm, and so has one
    whose square overflows. Leaves that carry no gradient are left out.

    Args:
      rows: tree of (B, \*shape) leaves, of :func:`per_example_grad`.

    Returns:
      (B,).

    Raises:
      ValueError: no leaf carries a gradient.

    Cost: for a factored leaf of rows M by N of T terms the least of T^2 (M + N) and
    T M N multiplications for each row. The sum of the rows is not computed: where norms
    are all that is asked for, a step costs less than the plain gradient's.

    Examples:
      >>> import jax.numpy as jnp
      >>> row_norms({"w": jnp.array([[3., 0.], [0., 1.]]), "b": jnp.array([4., 0.])})
      Array([5., 1.], dtype=float32)
    """
    leaves, dtype = floating_rows(rows)

    def total(leaves: list[Any]) -> Array:
        parts = [verbs.squared_norms(leaf, dtype) for leaf in leaves]
        return jnp.sqrt(sum(parts[1:], parts[0]))

    return of_each_row(total, leaves)
