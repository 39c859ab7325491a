"""How far rows add up: coherence, and its inverse."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._typing import Array
from consensus_optax.diagnostics._gramian import present


def coherence(gramian: Array, weights: Array | None = None) -> Array:
    r"""m-coherence: how many rows, of N, a typical row helps by its own step.

    .. math:: c = \frac{\|\sum_i w_i g_i\|^2}{\sum_i w_i^2 \|g_i\|^2}

    Guarantees: 1 for orthogonal rows, N for equal ones (the effective number of rows
    with unequal weights), 0 where they cancel, never more; scale-free.
    Edge cases: all rows zero, or none: 0.

    Args:
      gramian: (B, B), from :func:`gramian`.
      weights: (B,), 0 = absent; None: all ones.

    Returns:
      () in the dtype of the Gramian.

    Cost: O(B^2).

    References: Chatterjee, Zielinski, `Making coherence out of nothing at all
    <https://arxiv.org/abs/2008.01217>`_, 2020.

    Examples:
      >>> import jax.numpy as jnp
      >>> coherence(jnp.eye(4)).item(), coherence(jnp.ones((4, 4))).item()
      (1.0, 4.0)
    """
    together, apart = _squares(gramian, weights)
    return jnp.where(apart > 0, together / positive_or_one(apart), 0)


def gradient_diversity(gramian: Array, weights: Array | None = None) -> Array:
    r"""Gradient diversity: the inverse of coherence.

    .. math:: \Delta = \frac{\sum_i w_i^2 \|g_i\|^2}{\|\sum_i w_i g_i\|^2}

    Times the number of rows, it bounds the batch size up to which larger batches
    shorten training in proportion.

    Guarantees: 1 for orthogonal rows, 1/N for equal ones; scale-free.
    Edge cases: rows that cancel: inf. All rows zero, or none: 0.

    Args:
      gramian: (B, B), from :func:`gramian`.
      weights: (B,), 0 = absent; None: all ones.

    Returns:
      () in the dtype of the Gramian.

    Cost: O(B^2).

    References: Yin et al., `Gradient diversity: a key ingredient for scalable
    distributed learning <https://arxiv.org/abs/1706.05699>`_, 2017.

    Examples:
      >>> import jax.numpy as jnp
      >>> gradient_diversity(jnp.ones((4, 4))).item()
      0.25
    """
    together, apart = _squares(gramian, weights)
    inverse = apart / positive_or_one(together)
    cancelled = jnp.where(apart > 0, jnp.inf, 0).astype(inverse.dtype)
    return jnp.where(together > 0, inverse, cancelled)


def _squares(gramian: Array, weights: Array | None) -> tuple[Array, Array]:
    """Squared norm of the weighted sum, and the sum of the weighted squared norms."""
    gramian, weights = present(gramian, weights)
    scale = jnp.abs(gramian).max()
    gramian = gramian / positive_or_one(scale)
    product = lambda x, y: jnp.matmul(x, y, precision=lax.Precision.HIGHEST)
    together = product(product(weights, gramian), weights)
    apart = product(weights**2, gramian.diagonal())
    return jnp.maximum(together, 0), apart
