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
    calls = zip(order.clients, order.versions, strict=True)
    for number, (clients, versions) in enumerate(calls):
        for client, version in zip(clients.tolist(), versions.tolist(), strict=True):
            newest = len(past) - 1
            begun = max(newest - (number - version), 0)
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
    for _ in range(3):
        fit, _ = late(fit, (batches, jnp.zeros(3, int)), weights)
        other, _ = step(other, batches, weights)
    np.testing.assert_allclose(fit.params, other.params, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("names", ["clients", "places"])
def test_what_a_message_loses_is_kept_by_its_client(names):
    """In NumPy: half of two entries, late; one stops half-way and keeps what it has."""
    order, targets, _ = story()
    code, count = co.compressors.top_k(0.5), 6 if names == "clients" else 2
    chain = optax.chain(co.error_feedback(code, count), server(2))
    start = jnp.array([1.0, -1.0])
    scale = np.array([1.0, 0.7])
    data = jnp.asarray(targets[:, None, None] * scale, jnp.float32)  # (6, 1, 2)
    draw = functools.partial(training.draw_examples, batch_size=1)
    mean_loss = lambda w, batch: 0.5 * jnp.sum((w - batch[0]) ** 2)
    step = jax.jit(training.late_round(mean_loss, chain, optax.sgd(LOCAL)))
    batch_at = training.late_batches(
        *(jax.random.key(1), data, jnp.ones(6, int), draw, order), as_cohort=True
    )
    fit = training.start_late(start, chain, max_age=20)
    kept, past, moment = np.zeros((6, 2)), [np.asarray(start)], np.zeros(2)
    waiting = []
    for number in range(8):
        (cohort, ages), weights = batch_at(number)
        stops = number == 3
        who = np.asarray(cohort.clients)
        if names == "places":
            cohort = cohort._replace(clients=None)
        cohort = cohort._replace(num_done=jnp.array([0 if stops else 1, 1]))
        fit, _ = step(fit, (cohort, ages), weights)
        places = who if names == "clients" else np.arange(2)
        old, seen = kept.copy(), set()
        for row, (client, place) in enumerate(zip(who, places, strict=True)):
            if stops and row == 0:
                continue
            begun = max(len(past) - 1 - int(ages[row]), 0)
            due = LOCAL * (past[begun] - targets[client] * scale) + old[place]
            sent = np.where(np.arange(2) == np.abs(due).argmax(), due, 0)
            if place not in seen:  # who comes twice in a call is kept once
                kept[place] = due - sent
            seen.add(place)
            waiting.append(sent)
        if len(waiting) >= 2:
            moment = 0.9 * moment + np.mean(waiting, 0)
            past.append(past[-1] - RATE * moment)
            waiting = []
    np.testing.assert_allclose(fit.opt_state[0].error, kept[:count], rtol=1e-4)
    np.testing.assert_allclose(fit.params, past[-1], rtol=1e-4)


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


@pytest.mark.slow
def test_ages_stay_what_they_are_where_updates_are_refused():
    """One client sends nan: calls that make no version leave no others younger."""
    counts = {"num_clients": 10, "concurrency": 8, "num_updates": 2}
    order = federated.arrivals(jax.random.key(0), **counts, num_versions=40)
    data = (jnp.arange(10.0)[:, None] * jnp.ones((10, 5))).at[3].set(jnp.nan)
    chain = server(2)
    watch = ("mean_age", "consensus_ready")
    step = training.late_round(loss, chain, optax.sgd(LOCAL), watch=watch)
    draw = functools.partial(training.draw_examples, batch_size=3)
    batch_at = training.late_batches(
        jax.random.key(1), data, jnp.full(10, 5), draw, order
    )
    fit = training.start_late(jnp.zeros(()), chain, max_age=20)
    fit, found = jax.jit(lambda fit: training.train(step, fit, batch_at, 40))(fit)
    made = np.asarray(found["consensus_ready"]) > 0
    assert np.isfinite(np.asarray(found["loss"])[made]).all()  # of those that count
    ages, waiting, wanted = np.arange(40)[:, None] - np.asarray(order.versions), [], []
    for late, clients in zip(ages, np.asarray(order.clients), strict=True):
        version = np.isfinite(wanted).sum()
        sound = late[(clients != 3) & (late <= 20)]
        waiting += np.minimum(sound, version).tolist()
        wanted.append(np.mean(waiting) if len(waiting) >= 2 else np.nan)
        waiting = [] if len(waiting) >= 2 else waiting
    np.testing.assert_array_equal(made, np.isfinite(wanted))
    assert not made.all()
    of_versions = np.asarray(found["mean_age"])[made]
    np.testing.assert_allclose(of_versions, np.array(wanted)[made], rtol=1e-6)
