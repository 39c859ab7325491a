"""Effective number of rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax.diagnostics import effective_rows


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_known_values(scale):
    for weights, wanted in (([1, 1, 1], 3), ([1, 0, 0], 1), ([2, 1], 9 / 5)):
        got = effective_rows(scale * jnp.asarray(weights, jnp.float32))
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_nothing_and_what_cancels():
    assert effective_rows(jnp.zeros(3)) == 0
    assert effective_rows(jnp.array([1.0, -1.0])) == 0


@pytest.mark.parametrize("given", [{"w": jnp.ones(3)}, [1.0], None, jnp.ones((3, 2))])
def test_what_is_no_weights(given):
    with pytest.raises(ValueError, match=r"`weights` must be an array \(B,\)"):
        effective_rows(given)
