"""The variance of every coordinate over the rows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax._rows import verbs
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rows.stack import as_rows
from consensus_optax._rows.statistics import MOMENTS
from consensus_optax._rules.kinds import Roster
from consensus_optax._typing import Array, Tree
from consensus_optax.diagnostics._leaf_agreement import present_weights
from consensus_optax.folds._moments import mean_and_variance


def gradient_variance(rows: Tree, weights: Array | None = None) -> Tree:
    r"""Variance of the gradient over the rows, coordinate by coordinate.

    .. math:: s_p^2 = \frac{1}{1 - \sum_i \omega_i^2}
        \sum_i \omega_i (g_{ip} - \bar g_p)^2

    with shares :math:`\omega` of the weights: the usual estimate with N - 1 if they are
    equal. :func:`signal_to_noise` gates the mean by it.

    Guarantees: unbiased; shifting all rows changes nothing (to rounding), scaling them
    scales it by the square.
    Edge cases: fewer than two rows: 0. A row with a non-finite entry in any leaf is
    absent.

    Args:
      rows: tree of (B, \*shape) leaves.
      weights: (B,), 0 = absent; only their ratios matter. None: all ones.

    Returns:
      A tree like the parameters, float32 at least; zeros for leaves that carry no
      gradient.

    Cost: one pass over the rows, three arrays like the parameters carried.

    Examples:
      >>> import jax.numpy as jnp
      >>> gradient_variance(jnp.array([[1., 0.], [3., 0.]])).tolist()
      [2.0, 0.0]
    """
    leaves, _ = as_rows(rows, None)
    weights, order = present_weights(leaves, weights)
    flat, treedef = jax.tree.flatten(rows, is_leaf=is_outer_product)
    moving = iter(leaves)
    told = Roster(weights, jnp.zeros((), jnp.int32), {})

    def variance(leaf: Any) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape[1:])
        (moments,) = verbs.fold(next(moving), (MOMENTS,), weights, order)
        found = mean_and_variance(moments, told)[1]
        return jnp.where(weights.any(), found, 0)

    return jax.tree.unflatten(treedef, [variance(leaf) for leaf in flat])
