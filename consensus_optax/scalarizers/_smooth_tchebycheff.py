"""The worst loss, smoothed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._typing import Array
from consensus_optax.scalarizers._scalarizer import as_losses, of_each


def smooth_tchebycheff(
    losses: Array,
    mu: float | Array = 0.1,
    preference: Any = None,
    ideal: Any = None,
) -> Array:
    r"""Smooth Tchebycheff scalarization (STCH): a smooth maximum of weighted losses.

    .. math:: f = \mu \log \sum_k \exp\Big(
        \frac{\lambda_k (\ell_k - z_k)}{\mu}\Big)

    Its gradient is a combination of the losses' gradients whose weights are nearly
    those of the worst one alone for small :math:`\mu`, and :math:`\lambda / K` for
    large ones. The authors' code for tasks gives it logarithms of losses, less those of
    a first epoch: pass ``jnp.log(losses)`` and such an ``ideal``.

    Guarantees: :math:`m \le f \le m + \mu \log K` with m the maximum of
    :math:`\lambda_k (\ell_k - z_k)`; convex if the losses are; its minimizers are
    Pareto-optimal if all :math:`\lambda` are positive; no :math:`\mu` is so small that
    it overflows.
    Edge cases: one loss: :math:`\lambda (\ell - z)`. A loss that is inf or nan: nan.

    Args:
      losses: (K,) floating.
      mu: :math:`\mu` > 0.
      preference: :math:`\lambda`, (K,) numbers; 1 / K each if None.
      ideal: z, (K,) numbers, what each loss could be at best; 0 if None.

    Returns:
      A number, (), float32 at least.

    Raises:
      ValueError: an argument is out of range or not (K,).

    References: Lin et al., `Smooth Tchebycheff Scalarization for Multi-Objective
    Optimization <https://arxiv.org/abs/2402.19078>`_, 2024.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> value = smooth_tchebycheff(jnp.array([1.0, 2.0]), 0.01, [1.0, 1.0])
      >>> print(value)
      2.0
      >>> jax.grad(smooth_tchebycheff)(jnp.array([2.0, 2.0]), 0.01).tolist()
      [0.25, 0.25]
    """
    losses = as_losses(losses)
    _check.interval("mu", mu, 0, open_low=True, schedule=False)
    even = jnp.full(losses.shape, 1 / losses.size)
    weights = of_each("preference", even if preference is None else preference, losses)
    best = of_each("ideal", jnp.zeros(losses.shape) if ideal is None else ideal, losses)
    smooth = jnp.asarray(mu).astype(losses.dtype)
    weighted = weights * (losses - best)
    # Less the largest before the division: otherwise small mu overflow.
    largest = jax.lax.stop_gradient(jnp.max(weighted))
    excess = jax.nn.logsumexp((weighted - largest) / smooth)
    return smooth * excess + largest
