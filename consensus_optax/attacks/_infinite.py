"""Rows that are no numbers."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax._typing import Array, Tree
from consensus_optax.attacks._from_mean import from_mean


def infinite(
    honest: Tree,
    num_byzantine: int,
    key: Array | None = None,
    *,
    value: float = float("inf"),
) -> Tree:
    r"""One number everywhere, infinite unless told otherwise.

    Args:
      honest: rows, (h, \*shape) leaves.
      num_byzantine: f, how many attackers there are.
      key: not used.
      value: the number; 1e30 is finite and has no finite square in float32.

    Returns:
      Rows with f in every leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> infinite(jnp.zeros((4, 2)), 1).tolist()
      [[inf, inf]]
    """
    del key
    return from_mean(honest, num_byzantine, lambda mean, _: jnp.full_like(mean, value))
