"""Noise in the place of rows."""

from __future__ import annotations

import jax

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._typing import Array, Tree


def gaussian(
    honest: Tree, num_byzantine: int, key: Array, *, scale: float = 200.0
) -> Tree:
    r"""Normal noise around zero.

    Args:
      honest: rows, (h, \*shape) leaves.
      num_byzantine: f, how many attackers there are.
      key: random key.
      scale: standard deviation of every entry.

    Returns:
      Rows with f in every leaf.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> gaussian(jnp.zeros((4, 2)), 3, jax.random.key(0)).shape
      (3, 2)
    """
    _check.count("num_byzantine", num_byzantine)
    leaves, treedef = jax.tree.flatten(honest)
    keys = jax.random.split(key, len(leaves))
    dtype, normal = verbs.decision_dtype(honest), jax.random.normal
    noise = [
        (scale * normal(k, (num_byzantine, *leaf.shape[1:]), dtype)).astype(leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, noise)
