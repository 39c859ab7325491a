"""Losses weighed by variances that are learned with the parameters."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax._typing import Array
from consensus_optax.scalarizers._scalarizer import as_losses, of_each


def uncertainty(losses: Array, log_variances: Array) -> Array:
    r"""Uncertainty weighting (UW): each loss over a variance that is learned with it.

    .. math:: f = \tfrac{1}{2} \sum_k \big(e^{-s_k} \ell_k + s_k\big), \qquad
        s_k = \log \sigma_k^2

    The log-variances are parameters: put them beside the model's, (K,) zeros at first,
    and give both to the optimizer. Where :math:`\ell_k` stays, :math:`s_k` ends at
    :math:`\log \ell_k`, so that each loss counts as its logarithm. (The paper drops
    the half for classification; LibMTL starts at -0.5.)

    Guarantees: convex in s for losses >= 0; at the best s the gradient by the losses is
    half of that of :math:`\sum_k \log \ell_k`.
    Edge cases: a loss that is not positive has no best s: it falls for ever.

    Args:
      losses: (K,) floating.
      log_variances: s, (K,) floating.

    Returns:
      A number, (), float32 at least.

    Raises:
      ValueError: an argument is not (K,).

    References: Kendall, Gal and Cipolla, `Multi-Task Learning Using Uncertainty to
    Weigh Losses for Scene Geometry and Semantics
    <https://arxiv.org/abs/1705.07115>`_, 2017.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> losses, s = jnp.array([1.0, 4.0]), jnp.log(jnp.array([1.0, 4.0]))
      >>> jax.grad(uncertainty, argnums=1)(losses, s).tolist()  # the best s
      [0.0, 0.0]
      >>> jax.grad(uncertainty)(losses, s).tolist()
      [0.5, 0.125]
    """
    losses = as_losses(losses)
    logs = of_each("log_variances", log_variances, losses)
    return 0.5 * jnp.sum(jnp.exp(-logs) * losses + logs)
