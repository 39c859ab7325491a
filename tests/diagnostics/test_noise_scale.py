"""The noise scale: unbiased on a problem whose gradient and noise are known."""

import jax
import jax.numpy as jnp
import numpy as np

from consensus_optax.diagnostics import noise_scale

GRADIENT = np.array([1.0, -2.0, 0.5, 0.0])
DEVIATIONS = np.array([0.5, 1.0, 3.0, 2.0])
TRACE = (DEVIATIONS**2).sum()


def stacks(counts, trials, seed=0):
    """Rows (trials, B, 4), row i the mean of counts[i] noisy examples."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=(trials, len(counts), 4)) * DEVIATIONS
    return GRADIENT + noise / np.sqrt(counts)[:, None]


def estimates(rows, *args, **options):
    gramians = jnp.asarray(rows @ rows.swapaxes(1, 2), jnp.float32)
    found = jax.vmap(lambda G: noise_scale(G, *args, **options))(gramians)
    return np.asarray(found.gradient_squared), np.asarray(found.noise_trace)


def assert_unbiased(samples, truth):
    error = samples.std() / np.sqrt(len(samples))
    assert abs(samples.mean() - truth) < 4 * error
    assert error < 0.02 * truth  # so that a bias of a tenth would show


def test_is_unbiased_for_rows_of_one_example():
    squared, trace = estimates(stacks(np.ones(6), 40_000))
    assert_unbiased(squared, GRADIENT @ GRADIENT)
    assert_unbiased(trace, TRACE)


def test_is_unbiased_for_groups():
    squared, trace = estimates(stacks(np.full(3, 8), 40_000), group_size=8)
    assert_unbiased(squared, GRADIENT @ GRADIENT)
    assert_unbiased(trace, TRACE)


def test_is_unbiased_for_rows_of_unequal_counts_with_one_absent():
    counts = np.array([1.0, 4.0, 2.0, 7.0])
    weights = jnp.array([1.0, 4.0, 2.0, 0.0])
    squared, trace = estimates(stacks(counts, 60_000), weights)
    assert_unbiased(squared, GRADIENT @ GRADIENT)
    assert_unbiased(trace, TRACE)


def test_the_quotient_of_averages_is_the_noise_scale():
    squared, trace = estimates(stacks(np.ones(6), 40_000))
    truth = TRACE / (GRADIENT @ GRADIENT)
    np.testing.assert_allclose(trace.mean() / squared.mean(), truth, rtol=0.02)
    quotients = trace[squared > 0] / squared[squared > 0]
    assert abs(quotients.mean() / truth - 1) > 0.2  # why they are smoothed apart


def test_too_few_rows_and_no_signal():
    assert all(np.isnan(x) for x in noise_scale(jnp.ones((1, 1))))
    assert all(np.isnan(x) for x in noise_scale(jnp.ones((3, 3)), jnp.zeros(3)))
    assert noise_scale(jnp.array([[1.0, -1.0], [-1.0, 1.0]])).noise_scale == jnp.inf
    assert noise_scale(jnp.ones((3, 3))).noise_scale == 0
