"""Asynchronous rounds against a plain loop, and against rounds without ages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

import consensus_optax as co
from consensus_optax import federated, training

LOCAL, RATE = 0.3, 0.5


def loss(w, batch):
    return 0.5 * jnp.mean((w - batch) ** 2)


def server(num_updates, staleness=None):
    return optax.chain(
        federated.buffered(co.mean(), num_updates, staleness=staleness),
        co.skip_if_empty(optax.sgd(RATE, momentum=0.9)),
    )


def story():
    order = federated.arrivals(
        jax.random.key(0), num_clients=6, concurrency=5, num_updates=2, num_versions=12
    )
    targets = jnp.arange(6.0) * 3
    data = jnp.broadcast_to(targets[:, None], (6, 4))
    return order, np.asarray(targets), data


def by_loop(order, targets, max_age):
    """In NumPy: versions, ages, and updates that are too old."""
    past, v, moment = [0.0], 0.0, 0.0
    waiting = []
    for clients, versions in zip(order.clients, order.versions, strict=True):
        for client, version in zip(clients.tolist(), versions.tolist(), strict=True):
            newest = len(past) - 1
            begun = min(version, newest)
            if newest - begun > max_age:
                continue
            x = past[begun]
            for _ in range(3):
                x = x - LOCAL * (x - targets[client])
            waiting.append(((1 + newest - begun) ** -0.5, past[begun] - x))
        if len(waiting) >= 2:
            worth, rows = np.array(waiting).T
            moment = 0.9 * moment + (worth * rows).sum() / worth.sum()
            v = v - RATE * moment
            past.append(v)
            waiting = []
    return v, len(past) - 1


@pytest.mark.parametrize("max_age", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_equals_the_loop(max_age):
    order, targets, data = story()
    chain = server(2, federated.polynomial_staleness())
    step = training.late_round(loss, chain, optax.sgd(LOCAL), watch=["mean_age"])
    draw = functools.partial(training.draw_examples, batch_size=2)
    batch_at = training.late_batches(
        jax.random.key(1), data, jnp.full(6, 4), draw, order, num_steps=3
    )
    unweighted = lambda number: (batch_at(number)[0], None)
    fit = training.start_late(jnp.zeros(()), chain, max_age=max_age)
    run = jax.jit(lambda fit: training.train(step, fit, unweighted, 12))
    fit, metrics = run(fit)
    wanted, versions = by_loop(order, targets, max_age)
    np.testing.assert_allclose(fit.params, wanted, rtol=1e-4)
    assert int(federated.buffer_of(fit.opt_state).version) == versions
    if max_age == 20:
        assert versions == 12
        assert float(metrics["mean_age"].max()) > 1
    else:
        assert versions < 12


@pytest.mark.slow
def test_without_ages_it_is_a_federated_round():
    batches = jnp.arange(12.0).reshape(3, 2, 2)
    weights = jnp.array([1.0, 3.0, 2.0])
    late = training.late_round(loss, server(3), optax.sgd(LOCAL))
    fit = training.start_late(jnp.zeros(()), server(3), max_age=0)
    plain = optax.chain(co.mean(), optax.sgd(RATE, momentum=0.9))
    step = training.federated_round(loss, plain, optax.sgd(LOCAL))
    other = training.start(jnp.zeros(()), plain)
    for number in range(3):
        fit, _ = late(fit, (batches, jnp.full(3, number)), weights)
        other, _ = step(other, batches, weights)
    np.testing.assert_allclose(fit.params, other.params, rtol=1e-6)


@pytest.mark.slow
def test_who_waits_is_in_a_checkpoint(tmp_path):
    """An update in the buffer, and old versions: a stop changes no bit."""
    order, _, data = story()
    # three make a version, and two come at a time
    chain = server(3, federated.polynomial_staleness())
    step = jax.jit(training.late_round(loss, chain, optax.sgd(LOCAL)))
    draw = functools.partial(training.draw_examples, batch_size=2)
    batch_at = training.late_batches(
        jax.random.key(1), data, jnp.full(6, 4), draw, order, num_steps=3
    )
    start = training.start_late(jnp.zeros(()), chain, max_age=3)
    middle = start
    for number in range(5):
        middle, _ = step(middle, *batch_at(number))
    assert int(federated.buffer_of(middle.opt_state).num_held) > 0
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "fit", middle)
        checkpointer.wait_until_finished()
        again = checkpointer.restore(tmp_path / "fit", start)
    wanted = middle
    for number in range(5, 9):
        wanted, _ = step(wanted, *batch_at(number))
        again, _ = step(again, *batch_at(number))
    jax.tree.map(np.testing.assert_array_equal, again, wanted)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`max_age` must be at least 0; got -1"):
        training.start_late(jnp.zeros(()), server(2), max_age=-1)
    with pytest.raises(ValueError, match="must hold one buffer"):
        training.start_late(jnp.zeros(()), optax.sgd(1.0), max_age=1)
