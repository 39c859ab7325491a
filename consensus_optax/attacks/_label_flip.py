"""Labels turned round, at the source."""

from __future__ import annotations

from consensus_optax import _check
from consensus_optax._typing import Array


def label_flip(labels: Array, num_classes: int) -> Array:
    """Class k becomes class ``num_classes`` - 1 - k: honest gradients of wrong data.

    Args:
      labels: integers in [0, num_classes).
      num_classes: number of classes.

    Returns:
      Integers of the same shape and dtype.

    Examples:
      >>> import jax.numpy as jnp
      >>> label_flip(jnp.array([0, 1, 9]), 10).tolist()
      [9, 8, 0]
    """
    _check.count("num_classes", num_classes)
    return num_classes - 1 - labels
