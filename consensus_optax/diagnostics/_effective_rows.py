"""How many equally weighted rows a set of weights is worth."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._typing import Array


def effective_rows(weights: Array) -> Array:
    r"""Effective sample size of weights (Kish).

    .. math:: \frac{(\sum_i w_i)^2}{\sum_i w_i^2}

    Guarantees: N for N equal weights, 1 for a single one; scale-free.
    Edge cases: all weights zero: 0. Negative weights count by their sum, so weights
    that cancel give 0.

    Args:
      weights: (B,), those of a batch or those that a rule gave to its rows.

    Returns:
      ().

    Examples:
      >>> import jax.numpy as jnp
      >>> effective_rows(jnp.array([2., 2., 0.])).item()
      2.0
    """
    scale = jnp.abs(weights).max()
    weights = weights / positive_or_one(scale)
    squares = jnp.sum(weights**2)
    return jnp.sum(weights) ** 2 / positive_or_one(squares)
