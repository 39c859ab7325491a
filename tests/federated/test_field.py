"""Arithmetic modulo 2**31 - 1, against Python's integers."""

import jax
import jax.numpy as jnp
import numpy as np

from consensus_optax.federated import _field as field

P = field.PRIME
EDGES = [0, 1, 2, 2**15, 2**16 - 1, 2**16, P // 2, P - 2, P - 1]
RANDOM = np.random.default_rng(0).integers(0, P, 200).tolist()
NUMBERS = np.array(EDGES + RANDOM, np.uint32)
X, Y = (m.ravel() for m in np.meshgrid(NUMBERS, NUMBERS))


def wanted(of):
    return np.array([of(int(x), int(y)) % P for x, y in zip(X, Y, strict=True)])


def test_sums_and_products():
    x, y = jnp.asarray(X), jnp.asarray(Y)
    np.testing.assert_array_equal(field.add(x, y), wanted(lambda x, y: x + y))
    np.testing.assert_array_equal(field.subtract(x, y), wanted(lambda x, y: x - y))
    found = jax.jit(field.multiply)(x, y)
    np.testing.assert_array_equal(found, wanted(lambda x, y: x * y))


def test_powers_and_inverses():
    x, y = jnp.asarray(X[::37]), jnp.asarray(Y[::37])
    found = jax.jit(field.power)(x, y)
    pairs = zip(X[::37].tolist(), Y[::37].tolist(), strict=True)
    np.testing.assert_array_equal(found, [pow(x, y, P) for x, y in pairs])
    inverses = jax.jit(field.inverse)(jnp.asarray(NUMBERS))
    ones = field.multiply(inverses, jnp.asarray(NUMBERS))
    np.testing.assert_array_equal(ones, NUMBERS != 0)


def test_the_generators_powers_are_all_numbers():
    """Its order is no proper divisor of p - 1 = 2 3^2 7 11 31 151 331."""
    assert np.prod([2, 9, 7, 11, 31, 151, 331]) == P - 1
    for prime in (2, 3, 7, 11, 31, 151, 331):
        assert pow(field.GENERATOR, (P - 1) // prime, P) != 1


def test_what_is_reduced():
    edges = np.array([0, P - 1, P, P + 1, 2 * P, 2**32 - 1], np.uint32)
    np.testing.assert_array_equal(field.reduced(jnp.asarray(edges)), edges % P)
