"""Privacy of clients: one client more or less moves a round by C / d at the most."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from consensus_optax import federated, training

CLIENTS, PLACES, CHANCE, NORM, DIVISOR = 12, 12, 0.5, 0.7, 6.0
DATA = jnp.asarray(np.random.default_rng(0).normal(3, 5, (CLIENTS, 6)), jnp.float32)
COUNTS = jnp.full(CLIENTS, 6).at[3].set(2)


def loss(w, batch):
    return 0.5 * jnp.mean((w - batch) ** 2)


def batches(data=DATA, counts=COUNTS):
    draw = functools.partial(training.draw_examples, batch_size=3)
    select = functools.partial(federated.sample_poisson, probability=CHANCE)
    return training.client_batches(
        *(jax.random.key(0), data, counts, draw),
        num_sampled=PLACES,
        num_steps=4,
        select=select,
    )


def rounds(server, batch_at, number=0):
    step = training.federated_round(loss, server, optax.sgd(0.5), watch=["max_norm"])
    fit = training.start(jnp.zeros(()), server)
    return step(fit._replace(step=jnp.asarray(number)), *batch_at(number))


def test_a_client_changes_a_round_by_its_sensitivity():
    rule = co.clipped_sum(NORM, divisor=DIVISOR)
    assert rule.sensitivity == pytest.approx(NORM / DIVISOR)
    server = optax.chain(rule, optax.sgd(1.0))

    @jax.jit
    def moved(data, counts, number):
        return rounds(server, batches(data, counts), number)[0].params

    changes = []
    for number in range(6):
        whole = moved(DATA, COUNTS, number)
        for client in range(0, CLIENTS, 3):
            gone = moved(DATA, COUNTS.at[client].set(0), number)
            changes.append(float(abs(whole - gone)))
            # another's data, however far: replaced, so twice as much
            other = moved(DATA.at[client].set(1e6), COUNTS, number)
            assert abs(whole - other) <= 2 * rule.sensitivity
    assert 0 < max(changes) <= rule.sensitivity
    # somebody was there at full length, so the bound is what it is
    assert max(changes) > 0.9 * rule.sensitivity


@pytest.mark.slow
def test_noise_and_a_norm_that_adapts():
    norm = co.quantile_norm(0.1, expected_rows=CLIENTS * CHANCE, learning_rate=0.5)
    rule = co.private_sum(
        norm, divisor=DIVISOR, noise_multiplier=0.5, key=jax.random.key(1)
    )
    server = optax.chain(rule, optax.sgd(1.0))
    step = training.federated_round(loss, server, optax.sgd(0.5), watch=["max_norm"])
    fit = training.start(jnp.zeros(()), server)
    run = jax.jit(lambda fit: training.train(step, fit, batches(), 60))
    fit, metrics = run(fit)
    # half of the clients' moves are longer than a norm that has come to their median
    assert float(metrics["max_norm"][-1]) > 0.3
    assert np.isfinite(fit.params)
    # the mean of the clients, to what noise of deviation 0.5 C / d a round leaves
    assert abs(float(fit.params) - float(DATA.mean())) < 3


@pytest.mark.slow
def test_accounting_is_of_clients():
    pytest.importorskip(
        "dp_accounting", reason='pip install "consensus_optax[privacy]"'
    )
    sampling = co.privacy.PoissonSampling(CLIENTS, CHANCE, 20, PLACES)
    z = co.privacy.noise_multiplier_for(3.0, sampling, delta=1e-2)
    assert co.privacy.epsilon_of(z, sampling, delta=1e-2) <= 3.0
    # what is drawn is what is accounted for: places, chance, weights of 1
    weights_of = lambda number: batches()(number)[1]
    weights = np.asarray(jax.jit(jax.vmap(weights_of))(jnp.arange(200)))
    assert set(np.unique(weights)) <= {0, 1}
    sizes = weights.sum(1)
    # 200 rounds of 12 clients, deviation 1.73 a round: within five of the mean
    assert abs(np.mean(sizes) - CLIENTS * CHANCE) < 5 * 1.73 / 200**0.5


@pytest.mark.slow
def test_under_masks_too():
    rule = co.private_sum(
        NORM, divisor=DIVISOR, noise_multiplier=0.5, key=jax.random.key(1)
    )
    bound = PLACES * NORM / DIVISOR
    secure = federated.secure_sum(rule, bound=bound, key=jax.random.key(2), threshold=2)
    one, _ = rounds(optax.chain(rule, optax.sgd(1.0)), batches())
    other, _ = rounds(optax.chain(secure, optax.sgd(1.0)), batches())
    # twelve parts of a sum, each cut off at 2**-30 of the bound
    np.testing.assert_allclose(one.params, other.params, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("way", ["memory", "masks", "buffer"])
def test_what_goes_around_the_noise_is_an_error(way):
    """Control variates are means of gradients that nothing bounds."""
    rule = co.private_sum(1.0, divisor=3, noise_multiplier=1.0, key=jax.random.key(1))
    if way == "masks":
        rule = federated.secure_sum(rule, bound=4.0, key=jax.random.key(2))
    if way == "buffer":
        rule = federated.buffered(rule, 3)
    server = optax.chain(rule, optax.sgd(1.0))
    memory = training.client_memory(3, control_variates=True)
    step = training.federated_round(loss, server, optax.sgd(0.5), memory=memory)
    fit = training.start(jnp.zeros(()), server, memory)
    cohort = training.Cohort(jnp.arange(3), jnp.ones((3, 1, 2)))
    with pytest.raises(ValueError, match="`memory` must keep no control variates"):
        step(fit, cohort, jnp.ones(3))
