"""Arithmetic that many rules share."""

from __future__ import annotations

from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp

from consensus_optax._typing import Array


def positive_or_one(x: Array) -> Array:
    """X where it is positive, else 1: what a sum that may be empty is divided by."""
    return jnp.where(x > 0, x, 1)


def with_all_digits() -> AbstractContextManager[object]:
    """Where rules decide: products in float32, which GPUs and TPUs round otherwise.

    By default the former take operands of 10 bits (TF32), the latter of 8. What the
    model itself multiplies, and what is left of that in factored rows, is not meant.
    """
    return jax.default_matmul_precision("highest")
