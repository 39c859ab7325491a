"""Arithmetic that many rules share."""

from __future__ import annotations

from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp

from consensus_optax._typing import Array

# Three rows of five are a quorum of 0.6, and equal rows have a cosine of 1, however
# these round: shares and cosines meet a threshold that they miss by less than this.
SLACK = 1e-6


def positive_or_one(x: Array) -> Array:
    """X where it is positive, else 1: what a sum that may be empty is divided by."""
    return jnp.where(x > 0, x, 1)


@jax.custom_jvp
def root(x: Array) -> Array:
    """The square root, 0 of what is not above 0, with a derivative of 0 there.

    The length of a row of zeros has none, but rules divide by none such: infinity times
    the 0 that they multiply it by would be nan.
    """
    return jnp.sqrt(jnp.maximum(x, 0))


@root.defjvp
def _root_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (moved,) = primals, tangents
    found = root(x)
    return found, jnp.where(x > 0, moved / (2 * jnp.where(x > 0, found, 1)), 0)


def with_all_digits() -> AbstractContextManager[object]:
    """Where rules decide: products in float32, which GPUs and TPUs round otherwise.

    By default the former take operands of 10 bits (TF32), the latter of 8. What the
    model itself multiplies, and what is left of that in factored rows, is not meant.
    """
    return jax.default_matmul_precision("highest")
