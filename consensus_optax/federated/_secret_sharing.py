"""Secrets in shares, of which t tell all and t - 1 tell nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._typing import Array
from consensus_optax.federated import _field


def random_numbers(key: Array, shape: tuple[int, ...], below: int) -> Array:
    """Uniform numbers 0 ... below - 1, uint32, of 63 random bits each."""
    high, low = jax.random.bits(key, (2, *shape), jnp.uint32)
    high, low = _field.reduced(high), _field.reduced(low)
    # high 2**32 + low modulo the prime, then brought below
    number = _field.add(_field.multiply(high, jnp.uint32(2)), low)
    return number % jnp.uint32(below)


def shares_of(key: Array, secrets: Array, num_holders: int, threshold: int) -> Array:
    r"""Shamir's shares: values of a random polynomial whose value at 0 is the secret.

    .. math:: f_i(x) = s_i + \sum_{k=1}^{t - 1} c_{ik} x^k \bmod 2^{31} - 1

    Args:
      key: random key of the coefficients.
      secrets: (n,) uint32 below 2**31 - 1.
      num_holders: m; holder j, from 0, has the value at j + 1.
      threshold: t.

    Returns:
      (n, m) uint32: row i is secret i's, column j is what holder j is given.
    """
    shape = (threshold - 1, secrets.shape[0])
    coefficients = random_numbers(key, shape, _field.PRIME)
    at = jnp.arange(1, num_holders + 1, dtype=jnp.uint32)[None, :]

    def horner(total: Array, coefficient: Array) -> tuple[Array, None]:
        total = _field.add(_field.multiply(total, at), coefficient[:, None])
        return total, None

    zero = jnp.zeros((secrets.shape[0], num_holders), jnp.uint32)
    total, _ = lax.scan(horner, zero, coefficients)
    return horner(total, secrets)[0]


def reconstructed(shares: Array, holders: Array) -> Array:
    """Secrets from the shares of t holders: the polynomial's value at 0.

    Args:
      shares: (n, t) uint32.
      holders: (t,) int32, their numbers.

    Returns:
      (n,) uint32.
    """
    at = holders.astype(jnp.uint32) + 1
    others = ~jnp.eye(at.shape[0], dtype=bool)
    one = jnp.ones((), jnp.uint32)
    # prod of x_k / (x_k - x_j) over k other than j
    gaps = jnp.where(others, _field.subtract(at[None, :], at[:, None]), one)
    tops = jnp.where(others, at[None, :], one)
    weights = _field.multiply(_product(tops), _field.inverse(_product(gaps)))
    terms = _field.multiply(shares, weights[None, :])
    total, _ = lax.scan(
        lambda s, x: (_field.add(s, x), None), terms[:, 0], terms[:, 1:].T
    )
    return total


def _product(factors: Array) -> Array:
    """Of every row, (t, t) to (t,)."""
    ones = jnp.ones(factors.shape[0], jnp.uint32)
    multiply = lambda p, x: (_field.multiply(p, x), None)
    return lax.scan(multiply, ones, factors.T)[0]
