"""Minus the gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._typing import Array, Tree
from consensus_optax.attacks._from_mean import from_mean


def sign_flip(
    honest: Tree,
    num_byzantine: int,
    key: Array | None = None,
    *,
    scale: float = 1.0,
    own: bool = False,
) -> Tree:
    r"""Minus the honest mean, or minus the attackers' own gradients.

    Args:
      honest: rows, (h, \*shape) leaves.
      num_byzantine: f, how many attackers there are.
      key: not used.
      scale: factor.
      own: each attacker flips an honest row (the first, the second, ...), as one does
        that has honest data, instead of the mean.

    Returns:
      Rows with f in every leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> sign_flip(jnp.array([[1.], [3.]]), 1).tolist()
      [[-2.0]]
      >>> sign_flip(jnp.array([[1.], [3.]]), 1, own=True).tolist()
      [[-1.0]]
    """
    del key
    _check.count("num_byzantine", num_byzantine)
    if not own:
        return from_mean(honest, num_byzantine, lambda mean, _: -scale * mean)

    dtype = verbs.decision_dtype(honest)

    def flip(leaf: Array) -> Array:
        chosen = jnp.arange(num_byzantine) % leaf.shape[0]
        return (-scale * leaf[chosen].astype(dtype)).astype(leaf.dtype)

    return jax.tree.map(flip, honest)
