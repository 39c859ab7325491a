"""Attackers who are away together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax import attacks


def test_all_or_none_as_often_as_said():
    keys = jax.random.split(jax.random.key(0), 1000)
    weights = jnp.array([1.0, 2.0, 3.0, 4.0])
    silence = lambda key: attacks.silence(weights, 2, key, probability=0.3)
    found = np.asarray(jax.vmap(silence)(keys))
    away = found[:, 3] == 0
    np.testing.assert_array_equal(found[away, 2], 0)
    np.testing.assert_array_equal(found[~away], np.tile(weights, ((~away).sum(), 1)))
    np.testing.assert_array_equal(found[:, :2], np.tile(weights[:2], (1000, 1)))
    # deviation 14.5 of 1000 draws: within five of them, as once in 1.7 million keys
    assert abs(away.sum() - 300) < 5 * 14.5


def test_bad_arguments():
    with pytest.raises(
        ValueError, match=r"`num_byzantine` must be at most .* 2; got 3"
    ):
        attacks.silence(jnp.ones(2), 3, jax.random.key(0))
