"""Who is chosen how often: the stated inclusion probabilities, by counting.

Over 4000 keys a client of probability p is chosen within five deviations of 4000 p,
sqrt(4000 p (1 - p)) each: a right sampler would fail for one client in 1.7 million, so
for one of 3e-5 of all choices of keys here. Keys are fixed.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax import federated

KEYS = 4000
COUNTS = jnp.array([3, 0, 1, 5, 2, 2, 7, 4])
PRESENT = np.asarray(COUNTS) > 0


def draws(select, counts=COUNTS):
    keys = jax.random.split(jax.random.key(0), KEYS)
    run = jax.jit(jax.vmap(lambda key: select(key, counts)))
    chosen, weights = map(np.asarray, run(keys))
    assert chosen.dtype == np.int32
    assert weights.dtype == np.float32
    return chosen, weights


def often(chosen, weights, num_clients=8):
    """In how many rounds each client was, once or more."""
    place = np.where(weights > 0, chosen, num_clients)
    there = np.zeros((len(chosen), num_clients + 1), bool)
    np.put_along_axis(there, place, True, axis=1)
    return there[:, :-1].sum(0)


def assert_probabilities(found, wanted):
    wanted = np.asarray(wanted, float)
    deviations = np.sqrt(KEYS * wanted * (1 - wanted))
    assert np.all(np.abs(found - KEYS * wanted) <= 5 * deviations + 1e-9)


def test_uniform():
    select = functools.partial(federated.sample_clients, num_sampled=3)
    chosen, weights = draws(select)
    assert all(len(set(row)) == 3 for row in chosen.tolist())
    np.testing.assert_array_equal(weights, np.asarray(COUNTS)[chosen])
    assert_probabilities(often(chosen, weights), np.where(PRESENT, 3 / 7, 0))


def test_by_count():
    select = functools.partial(federated.sample_by_count, num_sampled=3)
    chosen, weights = draws(select)
    assert (weights == 1).all()
    shares = np.asarray(COUNTS) / np.asarray(COUNTS).sum()
    assert_probabilities(often(chosen, weights), 1 - (1 - shares) ** 3)
    # each of the three draws by itself is by count
    assert_probabilities(np.bincount(chosen[:, 2], minlength=8), shares)
    nobody, none = draws(select, jnp.zeros(8, jnp.int32))
    assert not none.any()
    assert nobody.shape == (KEYS, 3)


def test_poisson():
    select = functools.partial(
        federated.sample_poisson, num_sampled=8, probability=0.25
    )
    chosen, weights = draws(select)
    assert set(np.unique(weights)) == {0, 1}
    assert_probabilities(often(chosen, weights), np.where(PRESENT, 0.25, 0))
    # independent: both of a pair in a sixteenth of the rounds
    there = [np.any((chosen == i) & (weights > 0), 1) for i in (0, 3)]
    assert_probabilities(np.sum(there[0] & there[1]), 1 / 16)
    few = functools.partial(federated.sample_poisson, num_sampled=2, probability=0.9)
    _, weights = draws(few)
    assert weights.shape == (KEYS, 2)
    assert weights.sum(1).max() == 2


def test_power_of_choice():
    """Equal counts, by the formula; losses fall with the index."""
    total, candidates, places = 8, 4, 2
    losses = jnp.arange(total, 0, -1.0)
    select = functools.partial(
        federated.sample_by_loss,
        num_sampled=places,
        num_candidates=candidates,
        losses_of=lambda clients: losses[clients],
    )
    chosen, weights = draws(select, jnp.full(total, 5))
    assert (weights == 1).all()
    assert (chosen[:, 0] < chosen[:, 1]).all()  # largest loss first, none twice
    c = math.comb
    wanted = [
        candidates
        / total
        * sum(
            c(rank, k) * c(total - 1 - rank, candidates - 1 - k) for k in range(places)
        )
        / c(total - 1, candidates - 1)
        for rank in range(total)
    ]
    np.testing.assert_allclose(sum(wanted), places)
    assert_probabilities(often(chosen, weights), wanted)


def test_candidates_are_drawn_by_count_and_broken_ones_come_last():
    select = functools.partial(
        federated.sample_by_loss,
        num_sampled=1,
        num_candidates=1,
        losses_of=lambda clients: jnp.ones(1),
    )
    chosen, weights = draws(select)
    shares = np.asarray(COUNTS) / np.asarray(COUNTS).sum()
    assert_probabilities(often(chosen, weights), shares)
    losses = jnp.array([jnp.nan, 9.0, 1.0])
    chosen, weights = federated.sample_by_loss(
        *(jax.random.key(0), jnp.array([1, 0, 1]), 3),
        num_candidates=3,
        losses_of=lambda clients: losses[clients],
    )
    assert int(chosen[0]) == 2
    assert weights.tolist() == [1, 0, 0]


STRATA = [0, 0, 0, 0, 0, 1, 1, 2]


def test_stratified():
    select = functools.partial(
        federated.sample_stratified, num_sampled=4, strata=STRATA
    )
    chosen, weights = draws(select)
    strata = np.asarray(STRATA)[chosen]
    np.testing.assert_array_equal(strata, np.tile([0, 0, 1, 2], (KEYS, 1)))
    # of the first five, one of whom is not there
    wanted = [2 / 4, 0, 2 / 4, 2 / 4, 2 / 4, 1 / 2, 1 / 2, 1]
    assert_probabilities(often(chosen, weights), wanted)
    # weights make the sum that of all clients, in expectation
    np.testing.assert_allclose(
        weights[0, :2], np.asarray(COUNTS)[chosen[0, :2]] * 4 / 2
    )
    sums = weights.sum(1)
    error = sums.std() / KEYS**0.5
    assert abs(sums.mean() - np.asarray(COUNTS).sum()) < 5 * error


def test_a_stratum_that_is_away():
    counts = COUNTS.at[7].set(0)
    select = functools.partial(
        federated.sample_stratified, num_sampled=4, strata=STRATA
    )
    _, weights = draws(select, counts)
    assert (weights[:, 3] == 0).all()
    assert (weights[:, :3] > 0).all()


def test_rounds_take_any_of_them():
    from consensus_optax import training

    draw = functools.partial(training.draw_examples, batch_size=2)
    data = jnp.broadcast_to(jnp.arange(8.0)[:, None], (8, 7))
    select = functools.partial(federated.sample_poisson, probability=0.5)
    batch_at = training.client_batches(
        jax.random.key(0), data, COUNTS, draw, num_sampled=8, select=select
    )
    batches, weights = jax.jit(batch_at)(3)
    assert batches.shape == (8, 1, 2)
    assert set(np.unique(weights)) <= {0, 1}
    again, _ = jax.jit(batch_at)(4)
    assert np.any(np.asarray(again) != np.asarray(batches))


def test_bad_arguments():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"`counts` must have shape \(num_clients,\)"):
        federated.sample_by_count(key, jnp.ones((2, 2)), 1)
    losses_of = lambda clients: jnp.ones(1)
    with pytest.raises(ValueError, match="`num_candidates` must be at least 2; got 1"):
        federated.sample_by_loss(key, COUNTS, 2, num_candidates=1, losses_of=losses_of)
    with pytest.raises(ValueError, match="`losses_of` must give one loss for each"):
        federated.sample_by_loss(key, COUNTS, 2, num_candidates=3, losses_of=losses_of)
    with pytest.raises(ValueError, match="at least the number of strata, 3; got 2"):
        federated.sample_stratified(key, COUNTS, 2, strata=STRATA)
    with pytest.raises(ValueError, match="`strata` must have one entry for each of 8"):
        federated.sample_stratified(key, COUNTS, 2, strata=[0])
    with pytest.raises(ValueError, match="`probability` must be in"):
        co.federated.sample_poisson(key, COUNTS, 2, probability=2.0)
