"""Curvature of a loss in the directions of the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._rows import verbs
from consensus_optax._rows.outer_product import is_outer_product, restored
from consensus_optax._rows.stack import as_stack
from consensus_optax._rows.trees import arrays_of
from consensus_optax._rows.views import row_matrix
from consensus_optax._typing import Array, Tree


def span_hessian(
    fun: Callable[..., Any], params: Tree, rows: Tree, *args: Any, **kwargs: Any
) -> Array:
    r"""The Hessian of a loss between all pairs of rows, as a small matrix.

    .. math:: H_{ij} = g_i^\top\, \nabla^2 f(\theta)\, g_j

    What :func:`trust_region_weighting` takes as ``span_hessian``. Each row costs one
    Hessian-vector product, forward over reverse, one row at a time.

    Guarantees: symmetric; scales with the square of the rows; exact to rounding (no
    differences are taken).
    Edge cases: a row with a non-finite entry gives a non-finite row and column, which
    rules leave out with the row.

    Args:
      fun: loss, a scalar: ``fun(params, *args, **kwargs)``, the mean over a batch. The
        batch need not be that of the rows: a part of it is cheaper.
      params: where the Hessian is taken; floating leaves only.
      rows: tree of (B, \*shape) leaves, as :func:`per_example_grad` gives them.
      *args: further arguments of ``fun``, such as the batch.
      **kwargs: keyword arguments of ``fun``.

    Returns:
      (B, B), float32 (float64 with float64 parameters).

    Raises:
      ValueError: the rows are not those of the parameters.

    Cost: B Hessian-vector products, each about three gradients of ``fun``; memory of
    one of them.

    Examples:
      >>> import jax.numpy as jnp
      >>> loss = lambda w: w[0] ** 2 + 3 * w[1] ** 2
      >>> span_hessian(loss, jnp.ones(2), jnp.array([[1., 0.], [1., 1.]])).tolist()
      [[2.0, 2.0], [2.0, 8.0]]
    """
    params = arrays_of(params)
    stack = as_stack(rows, params)
    treedef = jax.tree.structure(params)
    gradient = jax.grad(lambda x: fun(x, *args, **kwargs))

    def with_every_row(index: Array) -> Array:
        """Inner products of all rows with the Hessian times one row, (B,)."""
        pairs = zip(stack.leaves, jax.tree.leaves(params), strict=True)
        tangents = [_row(leaf, index).astype(param.dtype) for leaf, param in pairs]
        direction = jax.tree.unflatten(treedef, tangents)
        _, image = jax.jvp(gradient, (params,), (direction,))
        images = [leaf.astype(stack.dtype) for leaf in jax.tree.leaves(image)]
        pairs = zip(stack.leaves, images, strict=True)
        products = [verbs.inner_products(leaf, image) for leaf, image in pairs]
        return sum(products[1:], products[0])

    matrix = lax.map(with_every_row, jnp.arange(stack.num_rows))
    return (matrix + matrix.T) / 2


def _row(leaf: verbs.Leaf, index: Array) -> Array:
    """One row in parameter shape."""
    if is_outer_product(leaf):
        return restored(leaf, row_matrix(leaf, index))
    return leaf[index]
