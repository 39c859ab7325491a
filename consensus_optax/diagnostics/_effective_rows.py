"""How many equally weighted rows a set of weights is worth."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

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
    if not isinstance(weights, jax.Array | np.ndarray) or weights.ndim != 1:
        shape = getattr(weights, "shape", None)
        found = f"a {type(weights).__name__}" if shape is None else f"shape {shape}"
        raise ValueError(
            f"`weights` must be an array (B,), a number for every row; got {found}."
        )
    scale = jnp.abs(weights).max()
    weights = weights / positive_or_one(scale)
    squares = jnp.sum(weights**2)
    return jnp.sum(weights) ** 2 / positive_or_one(squares)
