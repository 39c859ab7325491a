"""Honest rows and attackers in one stack."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from consensus_optax._typing import Tree


def join(honest: Tree, attackers: Tree) -> Tree:
    r"""All rows in one stack, honest ones first.

    Args:
      honest: rows, (h, \*shape) leaves.
      attackers: rows, (f, \*shape) leaves.

    Returns:
      Rows with h + f in every leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> join(jnp.zeros((4, 2)), jnp.ones((1, 2))).shape
      (5, 2)
    """
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), honest, attackers)
