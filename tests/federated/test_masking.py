"""Masks: sums are exact, whoever drops out; single messages are uniform.

Uniformity is tested by chi-square of bytes and of words: right ones are beyond the
bound for one key in a million, and keys are fixed.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from consensus_optax import federated

CLIENTS, THRESHOLD = 5, 3
NUMBERS = {
    "a": jax.random.bits(jax.random.key(7), (CLIENTS, 3, 2), jnp.uint32),
    "b": jnp.arange(CLIENTS, dtype=jnp.uint32),
}


@pytest.fixture(name="sent", scope="module")
def _sent():
    mask = jax.jit(federated.masked, static_argnames="threshold")
    return mask(jax.random.key(0), NUMBERS, threshold=THRESHOLD)


@pytest.fixture(name="unmask", scope="module")
def _unmask():
    return jax.jit(federated.unmasked, static_argnames="threshold")


def test_the_sum_of_whoever_is_there(sent, unmask):
    for there in itertools.product([False, True], repeat=CLIENTS):
        total, enough = unmask(sent, jnp.array(there), threshold=THRESHOLD)
        assert bool(enough) is (sum(there) >= THRESHOLD)
        chosen = np.array(there) if enough else np.zeros(CLIENTS, bool)
        for name, numbers in NUMBERS.items():
            wanted = np.asarray(numbers)[chosen].sum(0, dtype=np.uint32)
            np.testing.assert_array_equal(total[name], wanted)


def test_nothing_is_read_of_those_who_are_gone(sent, unmask):
    """No message and no share of theirs; so the sum is the same with others."""
    there = jnp.array([True, False, True, True, False])
    spoil = lambda leaf: jnp.where(
        there.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.uint32(123)
    )
    spoilt = sent._replace(
        messages=jax.tree.map(spoil, sent.messages),
        key_shares=jnp.where(there[None, :], sent.key_shares, jnp.uint32(77)),
        seed_shares=jnp.where(there[None, :], sent.seed_shares, jnp.uint32(77)),
    )
    # nor is a seed asked for of those who are gone, or a key of those who are there
    spoilt = spoilt._replace(
        seed_shares=jnp.where(there[:, None], spoilt.seed_shares, jnp.uint32(5)),
        key_shares=jnp.where(there[:, None], jnp.uint32(5), spoilt.key_shares),
    )
    one, _ = unmask(sent, there, threshold=THRESHOLD)
    other, _ = unmask(spoilt, there, threshold=THRESHOLD)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def uniform(words):
    """Chi-square of the bytes, and of the first of them by pairs of words."""
    raw = np.ascontiguousarray(words, np.uint32).view(np.uint8)
    counts = np.bincount(raw, minlength=256)
    expected = raw.size / 256
    statistic = ((counts - expected) ** 2 / expected).sum()
    return statistic < stats.chi2.isf(1e-6, 255)


@pytest.mark.parametrize("value", [0, pytest.param(2**32 - 1, marks=pytest.mark.slow)])
def test_messages_are_uniform_alone_and_together(value):
    """Constant numbers of 4096 entries; then one entry over 4096 keys."""
    numbers = jnp.full((3, 4096), value, jnp.uint32)
    mask = jax.jit(federated.masked, static_argnames="threshold")
    messages = np.asarray(mask(jax.random.key(1), numbers, threshold=2).messages)
    for some in ([0], [1], [2], [0, 1], [1, 2], [0, 1, 2]):
        # of all three, own seeds are left: the server has been told none
        assert uniform(messages[some].sum(0, dtype=np.uint32))
    assert not uniform(np.asarray(numbers[0]))

    single = lambda key: federated.masked(key, numbers[:, :1], threshold=2).messages
    keys = jax.random.split(jax.random.key(2), 4096)
    words = np.asarray(jax.jit(jax.vmap(single))(keys))[:, :, 0]
    assert all(uniform(words[:, client]) for client in range(3))
    # and no two clients' messages go together: their first bytes' correlation
    first = (words >> 24).astype(float)
    corr = np.corrcoef(first.T)[np.triu_indices(3, 1)]
    assert np.abs(corr).max() < 5 / 4096**0.5


@pytest.mark.slow
def test_a_sum_does_not_tell_its_parts():
    """Two sets of numbers of one sum: what the server comes to know is alike."""
    one = jnp.array([[1], [2], [3]], jnp.uint32)
    other = jnp.array([[3], [0], [3]], jnp.uint32)
    there = jnp.ones(3, bool)

    @jax.jit
    def summed(key, numbers):
        sent = federated.masked(key, numbers, threshold=3)
        return federated.unmasked(sent, there, threshold=3)[0]

    sums = [summed(jax.random.key(i), x) for i, x in enumerate([one, other])]
    assert sums[0].tolist() == sums[1].tolist() == [6]


def test_bad_arguments():
    with pytest.raises(ValueError, match="`numbers` must be uint32, one row for each"):
        federated.masked(jax.random.key(0), jnp.ones((3, 1)), threshold=2)
    numbers = jnp.ones((3, 1), jnp.uint32)
    with pytest.raises(ValueError, match=r"`threshold` must be at most .* 3; got 4"):
        federated.masked(jax.random.key(0), numbers, threshold=4)
