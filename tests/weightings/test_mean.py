"""The two baselines: mean of rows, mean of directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests._stacks import first_update


def test_weights_are_sample_counts():
    rows = jnp.array([[1.0, 2.0], [3.0, 6.0]])
    assert first_update(co.mean(), rows)[0].tolist() == [2, 4]
    weighted, _ = first_update(co.mean(), rows, weights=jnp.array([1.0, 3.0]))
    assert weighted.tolist() == [2.5, 5]


def test_is_the_gradient_of_the_batch():
    """The mean of per-example gradients, to the rounding of two summation orders."""
    random = np.random.default_rng(0)
    w, x = (jnp.float32(random.normal(size=shape)) for shape in ((5, 3), (7, 5)))
    loss = lambda w, x: jnp.mean(jnp.sin(x @ w) ** 2)
    result, _ = first_update(co.mean(), co.per_example_grad(loss)(w, x).materialize())
    np.testing.assert_allclose(result, jax.grad(loss)(w, x), atol=1e-7)  # sizes of 0.1


def test_zero_rows_count_in_the_divisor():
    rows = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    result, state = first_update(co.normalized_mean(), rows)
    np.testing.assert_allclose(result, [0.3, 0.4], rtol=1e-6)  # one square root
    assert state.consensus_ready


@pytest.mark.parametrize("make", [co.mean, co.normalized_mean])
def test_nobody_is_nothing(make):
    rows = jnp.full((3, 2), jnp.nan)
    result, state = first_update(make(), rows)
    assert result.tolist() == [0, 0]
    assert not state.consensus_ready
    assert (state.num_present, state.num_nonfinite) == (0, 3)
