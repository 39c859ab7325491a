"""The Pallas kernel in interpret mode against the loop."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax._rows.minmod_kernel import minmod_of_matmuls
from tests._bounds import assert_sums, of_sum


@pytest.mark.parametrize("shape", [(1, 1, 3, 4), (3, 5, 70, 20), (4, 16, 64, 64)])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_kernel_is_the_fold_of_the_products(shape, shift):
    rows, terms, m, n = shape
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.normal(size=(rows, terms, m)) + shift, jnp.float32)
    d = jnp.asarray(rng.normal(size=(rows, terms, n)) + shift, jnp.float32)
    update = minmod_of_matmuls(a, d, jnp.arange(rows), interpret=True)
    expected = functools.reduce(co.minmod, jnp.einsum("btm,btn->bmn", a, d))
    # the same sums twice, each right to rounding
    bound = 2 * of_sum(terms) * np.einsum("btm,btn->bmn", np.abs(a), np.abs(d)).max()
    np.testing.assert_allclose(update, expected, rtol=0, atol=bound)
    agreed = float((expected != 0).mean())
    assert agreed > 0 if shift or rows == 1 else agreed < 1


def test_nothing_agreed_is_exactly_zero():
    a, d, order = jnp.ones((3, 2, 8)).at[1].set(-1), jnp.ones((3, 2, 8)), jnp.arange(3)
    assert not jnp.any(minmod_of_matmuls(a, d, order, interpret=True))


def test_an_absent_row_is_not_read():
    """As `verbs.fold` calls it: row ``order[i]`` stands for row i, the first too."""
    random = np.random.default_rng(1)
    a, d = (random.uniform(0.5, 2, (4, 2, 5)).astype(np.float32) for _ in range(2))
    a[0] = np.nan
    a[2] *= -1e-3
    order = jnp.array([1, 1, 1, 3])
    update = minmod_of_matmuls(jnp.asarray(a), jnp.asarray(d), order, interpret=True)
    products = np.einsum("btm,btn->bmn", a[[1, 3]].astype(float), d[[1, 3]])
    assert_sums(update, products.min(0), products.min(0), 2)
