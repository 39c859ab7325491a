"""The Pallas kernel in interpret mode against the loop."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax._rows.minmod_kernel import minmod_of_matmuls


@pytest.mark.parametrize("shape", [(1, 1, 3, 4), (3, 5, 70, 20), (4, 16, 64, 64)])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_kernel_is_the_fold_of_the_products(shape, shift):
    rows, terms, m, n = shape
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.normal(size=(rows, terms, m)) + shift, jnp.float32)
    d = jnp.asarray(rng.normal(size=(rows, terms, n)) + shift, jnp.float32)
    update = minmod_of_matmuls(a, d, interpret=True)
    expected = functools.reduce(co.minmod, jnp.einsum("btm,btn->bmn", a, d))
    # sums of `terms` products in another order
    np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-5)
    agreed = float((expected != 0).mean())
    assert agreed > 0 if shift or rows == 1 else agreed < 1


def test_nothing_agreed_is_exactly_zero():
    a = jnp.ones((3, 2, 8)).at[1].set(-1)
    assert not jnp.any(minmod_of_matmuls(a, jnp.ones((3, 2, 8)), interpret=True))
