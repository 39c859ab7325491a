"""Numbers modulo the prime 2**31 - 1, in 32 bits: for shares of secrets.

2**31 is 1 there, so what is above 31 bits is added to what is below.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from consensus_optax._typing import Array

PRIME = 2**31 - 1
GENERATOR = 7  # its powers are all numbers but 0
_HALF = 16


def reduced(x: Array) -> Array:
    """Any uint32 to 0 ... PRIME - 1."""
    prime = jnp.uint32(PRIME)
    folded = (x & prime) + (x >> 31)
    return jnp.where(folded >= prime, folded - prime, folded)


def add(x: Array, y: Array) -> Array:
    """X + y; both below PRIME, so their sum is below 2**32."""
    return reduced(x + y)


def subtract(x: Array, y: Array) -> Array:
    """The difference x - y."""
    return reduced(x + (jnp.uint32(PRIME) - y))


def multiply(x: Array, y: Array) -> Array:
    """X y, by halves of 16 bits: no product is beyond 32 bits."""
    low = jnp.uint32(2**_HALF - 1)
    x_high, x_low, y_high, y_low = x >> _HALF, x & low, y >> _HALF, y & low
    top = reduced((x_high * y_high) << 1)  # 2**32 is 2
    # each is below 2**31
    middle = reduced(x_high * y_low + x_low * y_high)
    # times 2**16: bits 15 and up go round
    shifted = ((middle & jnp.uint32(2**15 - 1)) << _HALF) | (middle >> 15)
    return add(add(top, reduced(shifted)), reduced(x_low * y_low))


def power(base: Array, exponent: Array) -> Array:
    """Base ** exponent, exponent of any shape that broadcasts; below 2**31."""

    def turn(bit: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        result, square = carry
        taken = (exponent >> bit.astype(jnp.uint32)) & 1
        result = jnp.where(taken == 1, multiply(result, square), result)
        return result, multiply(square, square)

    base, exponent = jnp.broadcast_arrays(base, exponent)
    return lax.fori_loop(0, 31, turn, (jnp.ones_like(base), base))[0]


def inverse(x: Array) -> Array:
    """1 / x, 0 of 0: by Fermat."""
    return power(x, jnp.full_like(x, PRIME - 2))
