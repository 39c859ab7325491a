"""Batches: who is in them, how often, and that they are padded and cut off fairly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax.privacy import PoissonSampling, poisson_batches

KEY = jax.random.key(5)


def drawn(sampling, key=KEY):
    """Which examples are in which batch, (num_steps, num_examples) counts."""
    batch_at = poisson_batches(key, jnp.arange(sampling.num_examples), sampling)
    steps = jnp.arange(sampling.num_steps)
    indices, weights = map(np.asarray, jax.jit(jax.vmap(batch_at))(steps))
    assert indices.shape == weights.shape == (sampling.num_steps, sampling.max_size)
    assert set(np.unique(weights)) <= {0, 1}
    counts = np.zeros((sampling.num_steps, sampling.num_examples))
    for step in range(sampling.num_steps):
        np.add.at(counts[step], indices[step][weights[step] > 0], 1)
    return counts


def test_every_example_is_drawn_by_its_own_chance():
    """Shares, and correlations of examples and of steps, are as of independent draws.

    Within 5 deviations: exceeded by chance with probability 6e-7 each, of about 500
    numbers with 3e-4; the key is fixed.
    """
    sampling = PoissonSampling(200, 0.3, num_steps=2000, max_size=200)
    counts = drawn(sampling)
    assert counts.max() == 1
    deviation = np.sqrt(0.3 * 0.7 / sampling.num_steps)
    assert np.abs(counts.mean(0) - 0.3).max() < 5 * deviation
    sizes = counts.sum(1)
    assert abs(sizes.mean() - 60) < 5 * np.sqrt(42 / 2000)
    assert abs(sizes.var() / 42 - 1) < 5 * np.sqrt(2 / 2000)
    normal = (counts - 0.3) / np.sqrt(0.21)
    across = [normal[:, :-1] * normal[:, 1:], normal[:-1] * normal[1:]]
    for products in across:
        assert abs(products.mean()) < 5 / np.sqrt(products.size)


def test_of_too_many_all_are_cut_off_with_the_same_chance():
    sampling = PoissonSampling(50, 0.5, num_steps=4000, max_size=20)
    counts = drawn(sampling)
    assert (counts.sum(1) == 20).mean() > 0.8
    share = counts.mean()
    deviation = np.sqrt(share * (1 - share) / sampling.num_steps)
    # as above; a sum that is cut off leaves each share a smaller deviation
    assert np.abs(counts.mean(0) - share).max() < 5 * deviation


def test_batches_are_those_of_key_and_step():
    sampling = PoissonSampling(30, 0.2, num_steps=40, max_size=30)
    examples = {"x": jnp.arange(30), "y": jnp.ones((30, 2))}
    batch_at = poisson_batches(KEY, examples, sampling)
    batch, weights = jax.jit(batch_at)(7)
    again, same = batch_at(jnp.int32(7))
    assert batch["y"].shape == (30, 2)
    np.testing.assert_array_equal(batch["x"], again["x"])
    np.testing.assert_array_equal(weights, same)
    counts = drawn(sampling)
    assert (counts[:-1] != counts[1:]).any(1).all()
    assert (drawn(sampling, jax.random.key(6)) != counts).any()


def test_the_ends_of_the_probability():
    every = drawn(PoissonSampling(9, 1.0, num_steps=3, max_size=12))
    np.testing.assert_array_equal(every, 1)
    rarely = drawn(PoissonSampling(9, 1e-9, num_steps=3, max_size=4))
    assert not rarely.any()  # a chance of 3e-8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("probability", 0.0),
        ("probability", 1.5),
        ("num_steps", 0),
        ("max_size", 0),
        ("num_examples", 2.5),
    ],
)
def test_a_wrong_field_is_named(field, value):
    sampling = PoissonSampling(10, 0.5, num_steps=1, max_size=10)
    with pytest.raises(ValueError, match=f"`{field}`"):
        poisson_batches(KEY, jnp.arange(10), sampling._replace(**{field: value}))


def test_other_examples_than_were_said_are_an_error():
    sampling = PoissonSampling(10, 0.5, num_steps=1, max_size=10)
    with pytest.raises(ValueError, match=r"got \(9,\), not 10"):
        poisson_batches(KEY, jnp.arange(9), sampling)
