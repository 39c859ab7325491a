"""Shamir's shares: any t tell the secret, t - 1 say nothing of it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from consensus_optax.federated import _field as field
from consensus_optax.federated import _secret_sharing as sharing


def test_any_threshold_of_holders():
    secrets = jnp.array([0, 5, field.PRIME - 1], jnp.uint32)
    shares = sharing.shares_of(jax.random.key(0), secrets, 5, 3)
    assert shares.shape == (3, 5)
    tell = jax.jit(sharing.reconstructed)
    for holders in itertools.permutations(range(5), 3):
        chosen = jnp.array(holders)
        np.testing.assert_array_equal(tell(shares[:, chosen], chosen), secrets)


def test_one_less_says_nothing():
    """Two shares of t = 3 are uniform, whatever the secret: chi-square, 64 bins.

    A right one is beyond the bound for one key in a million; the key is fixed.
    """
    keys = jax.random.split(jax.random.key(1), 20_000)
    for secret in (0, field.PRIME - 1):
        deal = functools.partial(
            sharing.shares_of,
            secrets=jnp.array([secret], jnp.uint32),
            num_holders=3,
            threshold=3,
        )
        shares = np.asarray(jax.jit(jax.vmap(deal))(keys))[:, 0, :2].astype(float)
        places = np.floor(shares / field.PRIME * 8).astype(int)
        counts = np.bincount(places[:, 0] * 8 + places[:, 1], minlength=64)
        statistic = ((counts - 312.5) ** 2 / 312.5).sum()
        assert statistic < stats.chi2.isf(1e-6, 63)
