"""A small step against the mean."""

from __future__ import annotations

from consensus_optax._typing import Array, Tree
from consensus_optax.attacks._from_mean import from_mean


def inner_product_manipulation(
    honest: Tree, num_byzantine: int, key: Array | None = None, *, epsilon: float = 0.5
) -> Tree:
    r"""IPM: a small step against the honest mean, :math:`-\epsilon \bar g`.

    Small enough to pass for honest where rows vary, it can turn the inner product of
    the update with the true gradient negative (Xie et al., `Fall of Empires
    <https://arxiv.org/abs/1903.03936>`_, 2019).

    Args:
      honest: rows, (h, \*shape) leaves.
      num_byzantine: f, how many attackers there are.
      key: not used.
      epsilon: how far.

    Returns:
      Rows with f in every leaf, all equal.

    Examples:
      >>> import jax.numpy as jnp
      >>> inner_product_manipulation(jnp.array([[1.], [3.]]), 1).tolist()
      [[-1.0]]
    """
    del key
    return from_mean(honest, num_byzantine, lambda mean, _: -epsilon * mean)
