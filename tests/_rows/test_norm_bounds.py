"""Bounds of norms: never below what a row is in exact arithmetic, hardly above it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax._rows.norm_bounds import squared_norm_bounds
from consensus_optax._rows.verbs import Mixed
from tests._stacks import B, factored


def exact(leaf):
    """Norms of rows of factors, or of arrays, from float64."""
    if not co.is_outer_product(leaf):
        rows = np.asarray(leaf, np.float64)
        return np.linalg.norm(rows.reshape(rows.shape[0], -1), axis=1)
    left, right = np.asarray(leaf.left, np.float64), np.asarray(leaf.right, np.float64)
    rows = np.einsum("btm,btn->bmn", left, right)
    return np.linalg.norm(rows.reshape(len(rows), -1), axis=1)


def bounds(leaf, dtype=jnp.float32):
    of_leaf = jax.jit(lambda leaf: jnp.sqrt(squared_norm_bounds(leaf, dtype)))
    return np.asarray(of_leaf(leaf), np.float64)


@pytest.mark.parametrize("name", factored()[0])
def test_rows_of_every_kind(name):
    """Bfloat16 factors, layers, look-ups: what they stand for, some units more."""
    rows, _, stood_for = factored()
    lengths = np.linalg.norm(stood_for[sorted(rows).index(name)], axis=1)
    found = bounds(rows[name])
    # products of terms that cancel in part add up to some times the row's length
    assert (found >= lengths).all()
    assert (found <= (1 + 1e-4) * lengths).all()


def test_mixed_rows():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(B, 7)), jnp.float32)
    matrix = jnp.full((2, B), 0.5)
    found = bounds(Mixed(matrix, rows, jnp.arange(B)))
    wanted = exact(matrix @ rows)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)  # sums of six terms
    assert found.shape == (2,)


@pytest.mark.parametrize(("terms", "m", "n"), [(1, 8, 9), (2, 30, 40), (20, 8, 9)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_that_are_hard_to_measure(terms, m, n, dtype):
    """Of any scale, cancelling, underflowing: never below, else hardly above."""
    random = np.random.default_rng(terms)
    count = 300
    left = random.normal(size=(count, terms, m))
    right = random.normal(size=(count, terms, n))
    reach = 15 if dtype == np.float32 else 70
    left *= 10.0 ** random.integers(-reach, reach, (count, 1, 1))
    right *= 10.0 ** random.integers(-reach, reach, (count, 1, 1))
    if terms > 1:
        left[:100] = left[:100, :1]
        right[:100, 1::2] = -right[:100, ::2]
        right[:100] *= 1 + 1e-6 * random.normal(size=(100, terms, n))
    left[100:120], right[100:120] = 9e-20, 1.7e19 / np.sqrt(n)
    left[120:130] = 0
    with jax.enable_x64(dtype == np.float64):
        leaf = co.OuterProduct(
            jnp.asarray(left, dtype), jnp.asarray(right, dtype), row_shape=(m, n)
        )
        found = bounds(leaf, jnp.dtype(dtype))
        wanted = exact(leaf)
    assert (found >= wanted).all()
    fits = (wanted[130:] ** 2 < np.finfo(dtype).max) & (wanted[130:] > 1e-15)
    sharp = 1e-3 if dtype == np.float32 else 1e-12
    assert (found[130:][fits] <= (1 + sharp) * wanted[130:][fits]).all()
    # what underflows of one factor is at most 1e-19, of the other there may be 1e15
    assert (found[120:130] < 1).all()


def test_arrays_that_underflow():
    """Squares of entries below 1e-19 are lost in float32; their norm is bounded."""
    rows = jnp.asarray([[1e-30] * 50, [0.0] * 50, [1e-10] * 50], jnp.float32)
    found = bounds(rows)
    assert (found >= exact(rows)).all()
    assert (found <= (1 + 1e-5) * exact(rows) + 1e-15).all()
