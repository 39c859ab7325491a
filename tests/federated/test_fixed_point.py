"""The code for sums: range, error, direction of rounding."""

import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax import federated


@pytest.mark.parametrize("bound", [1.0, 3.0, 1e-6, 1e6])
def test_sums_are_exact_and_single_numbers_nearly(bound):
    code = federated.fixed_point(bound)
    assert bound * code.scale < 2**31 <= 2 * bound * code.scale + 2 * code.scale * bound
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (50, 200))
    x = (bound * 0.999 * x / np.abs(x).sum(0)).astype(np.float32)
    numbers = code.encode(jnp.asarray(x))
    assert numbers.dtype == jnp.uint32
    signed = np.asarray(numbers).astype(np.int64)
    signed = np.where(signed >= 2**31, signed - 2**32, signed)
    exact = x.astype(np.float64) * code.scale
    np.testing.assert_array_equal(signed, np.trunc(exact))  # towards zero
    total = np.asarray(code.decode(numbers.sum(0, dtype=jnp.uint32)), np.float64)
    np.testing.assert_allclose(total, signed.sum(0) / code.scale, rtol=2**-23)
    error = np.abs(total - x.astype(np.float64).sum(0))
    assert error.max() <= 50 * bound * 2.0**-30 + bound * 2.0**-24


def test_what_is_beyond_and_what_is_no_number():
    code = federated.fixed_point(2.0)
    x = jnp.array([5.0, -5.0, jnp.inf, -jnp.inf, jnp.nan])
    found = np.asarray(code.decode(code.encode(x)))
    # the code reaches to 2**31 / scale, here 4
    np.testing.assert_allclose(found, [4, -4, 4, -4, 0], rtol=1e-6)
    with pytest.raises(ValueError, match="`bound` must be in"):
        federated.fixed_point(0.0)
