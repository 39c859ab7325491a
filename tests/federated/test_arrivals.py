"""Simulated arrivals: a story that holds together, and who answers first how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax import federated

CLIENTS, BUSY, K, VERSIONS = 9, 4, 3, 40


def took(key, client):
    """Time that depends on the client alone, so that beginnings can be told."""
    return 1 + 0.1 * client.astype(jnp.float32) ** 1.5


def test_the_story_holds_together():
    found = federated.arrivals(
        jax.random.key(0),
        num_clients=CLIENTS,
        concurrency=BUSY,
        num_updates=K,
        num_versions=VERSIONS,
        duration=took,
    )
    clients, versions, times = (np.asarray(x).reshape(-1) for x in found)
    assert np.all(np.diff(times) >= 0)
    lasted = 1 + 0.1 * clients**1.5
    begun = times - lasted
    order = np.argsort(begun, kind="stable")
    # C begin at once, then one with every arrival
    np.testing.assert_allclose(begun[order][:BUSY], 0, atol=1e-5)
    later = begun[order][BUSY:]
    # of those begun before, all have arrived: nobody takes 4
    later = later[later < times[-1] - 4]
    assert len(later) > 80
    # in float32 times up to 80 are known to 1e-5
    np.testing.assert_allclose(later, times[: len(later)], atol=1e-3)
    # the version then: of K arrivals each
    before = (times[None, :] <= begun[:, None] + 1e-3).sum(1)
    np.testing.assert_array_equal(versions, before // K)
    for client in range(CLIENTS):  # never busy twice at a time
        own = np.flatnonzero(clients == client)
        assert np.all(begun[own][1:] >= times[own][:-1] - 1e-3)
    assert len(np.unique(clients)) == CLIENTS
    again = federated.arrivals(
        jax.random.key(0),
        num_clients=CLIENTS,
        concurrency=BUSY,
        num_updates=K,
        num_versions=VERSIONS,
        duration=took,
    )
    jax.tree.map(np.testing.assert_array_equal, again, found)


def test_one_at_a_time_has_no_age():
    found = federated.arrivals(
        jax.random.key(0), num_clients=3, concurrency=1, num_updates=1, num_versions=5
    )
    np.testing.assert_array_equal(found.versions[:, 0], np.arange(5))


def test_a_slow_client_is_heard_less_in_rounds_of_the_first():
    """Of two exponential times the shorter: by rate; 2000 keys, five deviations."""
    rates = jnp.array([3.0, 1.0])
    duration = lambda key, client: jax.random.exponential(key) / rates[client]
    keys = jax.random.split(jax.random.key(1), 2000)
    first = lambda key: federated.sample_first(
        key, jnp.array([5, 5]), 1, num_asked=2, duration=duration
    )
    chosen, weights = jax.jit(jax.vmap(first))(keys)
    assert (np.asarray(weights) == 5).all()
    deviation = (2000 * 0.75 * 0.25) ** 0.5
    assert abs((np.asarray(chosen) == 0).sum() - 1500) < 5 * deviation


def test_who_never_answers_has_weight_zero():
    never = lambda key, client: jnp.where(client == 1, jnp.inf, 1.0)
    chosen, weights = federated.sample_first(
        jax.random.key(0), jnp.array([2, 2, 0]), 3, num_asked=3, duration=never
    )
    assert int(chosen[0]) == 0
    assert weights.tolist() == [2, 0, 0]


def test_staleness():
    ages = jnp.array([0.0, 1.0, 8.0])
    found = federated.polynomial_staleness(0.5)(ages)
    np.testing.assert_allclose(found, [1, 2**-0.5, 1 / 3], rtol=1e-6)
    found = federated.hinge_staleness(10.0, 4)(ages)  # FedAsync's, a = 10, b = 4
    np.testing.assert_allclose(found, [1, 1, 1 / (10 * (8 - 4) + 1)], rtol=1e-6)


def test_bad_arguments():
    sizes = {"num_clients": 2, "concurrency": 3, "num_updates": 1, "num_versions": 1}
    with pytest.raises(ValueError, match=r"`concurrency` must be at most .* 2; got 3"):
        federated.arrivals(jax.random.key(0), **sizes)
    with pytest.raises(ValueError, match="`num_asked` must be at least 2; got 1"):
        federated.sample_first(jax.random.key(0), jnp.ones(3), 2, num_asked=1)
    with pytest.raises(ValueError, match="`exponent` must be in"):
        federated.polynomial_staleness(-1.0)
