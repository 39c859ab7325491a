"""Arithmetic that many rules share."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax._typing import Array


def positive_or_one(x: Array) -> Array:
    """X where it is positive, else 1: what a sum that may be empty is divided by."""
    return jnp.where(x > 0, x, 1)
