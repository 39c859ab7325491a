"""What clients keep: published recursions, faults that leave no trace, checkpoints."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from consensus_optax import compressors, federated, training
from tests._selected import cases, in_ci

CLIENTS, STEPS, RATE = 16, 3, 0.1
RNG = np.random.default_rng(0)
TARGETS = jnp.asarray(RNG.normal(size=(CLIENTS, 3)), jnp.float32)
SLOPES = jnp.asarray(RNG.uniform(0.5, 3, (CLIENTS, 3)), jnp.float32)
PARAMS = {"body": jnp.zeros(3), "head": jnp.ones(3)}
MASK = {"body": False, "head": True}
KEY = jax.random.key(0)


def loss(params, batch):
    """A quadratic of one's own in the body, and in the head its product with it."""
    target, slope = batch
    error = params["body"] - target
    return 0.5 * (slope * error**2).sum() + 0.5 * ((params["head"] - error) ** 2).sum()


def cohort(chosen, num_done=None):
    chosen = jnp.asarray(chosen, jnp.int32)
    tile = lambda x: jnp.repeat(x[chosen % CLIENTS][:, None], STEPS, 1)
    return training.Cohort(chosen, (tile(TARGETS), tile(SLOPES)), num_done)


@functools.cache
def everything(rule=co.mean, **options):
    """A server, a memory of all that there is, and the round."""
    code = compressors.stochastic_quantization(4, KEY)
    server = optax.chain(co.error_feedback(code, CLIENTS), rule(), optax.sgd(1.0))
    memory = training.client_memory(CLIENTS, control_variates=True, personal=MASK)
    step = training.federated_round(
        loss, server, optax.sgd(RATE), memory=memory, **options
    )
    return training.start(PARAMS, server, memory), jax.jit(step)


def rounds(fit, step, chosen, weights=None):
    for each in chosen:
        fit, _ = step(fit, cohort(each), weights)
    return fit


def kept(fit):
    """Whatever has an axis of clients."""
    state = fit.clients
    return state.last_seen, state.controls, state.personal, fit.opt_state[0].error


def assert_bits(one, other):
    same = lambda x, y: np.testing.assert_array_equal(
        np.atleast_1d(x).view(np.uint8), np.atleast_1d(y).view(np.uint8)
    )
    jax.tree.map(same, one, other)


def test_control_variates_are_scaffold_s():
    """In NumPy, with option II as it is published."""
    server = optax.chain(co.mean(), optax.sgd(1.0))
    memory = training.client_memory(CLIENTS, control_variates=True)
    simple = lambda x, batch: 0.5 * (batch[1] * (x - batch[0]) ** 2).sum()
    step = jax.jit(
        training.federated_round(simple, server, optax.sgd(RATE), memory=memory)
    )
    fit = training.start(jnp.zeros(3), server, memory)
    x, c, each = np.zeros(3), np.zeros(3), np.zeros((CLIENTS, 3))
    targets, slopes = np.asarray(TARGETS, float), np.asarray(SLOPES, float)
    for chosen in ([0, 3, 5], [5, 1, 9], [3, 0, 5]):
        fit, _ = step(fit, cohort(chosen), None)
        moved, changes = [], []
        for i in chosen:
            y = x.copy()
            for _ in range(STEPS):
                y -= RATE * (slopes[i] * (y - targets[i]) - each[i] + c)
            new = each[i] - c + (x - y) / (STEPS * RATE)
            moved.append(y - x)
            changes.append(new - each[i])
            each[i] = new
        x, c = x + np.mean(moved, 0), c + np.sum(changes, 0) / CLIENTS
        np.testing.assert_allclose(fit.params, x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(fit.clients.controls, each, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(fit.clients.control, c, rtol=1e-4, atol=1e-6)
    assert fit.clients.last_seen[jnp.array([0, 1, 2, 3, 5, 9])].tolist() == [
        *(2, 1, -1, 2, 2, 1)
    ]


@in_ci
def test_control_variates_mend_the_clients_drift():
    """FedAvg with many local steps ends at the wrong place, SCAFFOLD does not."""
    server = optax.chain(co.mean(), optax.sgd(1.0))
    simple = lambda x, batch: 0.5 * (batch[1] * (x - batch[0]) ** 2).sum()
    best = (SLOPES * TARGETS).sum(0) / SLOPES.sum(0)
    every = lambda number: (cohort(range(CLIENTS)), None)
    off = []
    for controlled in (False, True):
        memory = training.client_memory(CLIENTS, control_variates=controlled)
        step = training.federated_round(simple, server, optax.sgd(RATE), memory=memory)
        start = training.start(jnp.zeros(3), server, memory)
        run = lambda fit, step=step: training.train(step, fit, every, 300)
        fit, _ = jax.jit(run)(start)
        off.append(float(jnp.abs(fit.params - best).max()))
    assert off[1] < 1e-4 < 1e-2 < off[0]


@in_ci
@pytest.mark.parametrize(
    "select", [federated.sample_clients, federated.sample_by_count]
)
def test_the_server_s_variate_stays_the_mean_of_theirs(select):
    """Also where a client is drawn more than once, of which one row is kept."""
    server = optax.chain(co.mean(), optax.sgd(1.0))
    memory = training.client_memory(4, control_variates=True)
    simple = lambda x, t: 0.5 * jnp.mean((x - t) ** 2)
    step = training.federated_round(simple, server, optax.sgd(RATE), memory=memory)
    batch_at = training.client_batches(
        KEY,
        jnp.arange(4.0)[:, None],
        jnp.ones(4, jnp.int32),
        functools.partial(training.draw_examples, batch_size=1),
        num_sampled=3,
        num_steps=STEPS,
        select=select,
        as_cohort=True,
    )
    run = lambda fit: training.train(step, fit, batch_at, 100)[0]
    fit = jax.jit(run)(training.start(jnp.zeros(()), server, memory))
    mean = fit.clients.controls.mean()
    # a hundred sums of numbers of a few units
    np.testing.assert_allclose(fit.clients.control, mean, atol=100 * 4 * 2.0**-23)


def test_whoever_has_not_done_all_is_absent_whoever_it_is():
    server = optax.chain(co.mean(), optax.sgd(1.0))
    simple = lambda x, t: 0.5 * jnp.sum((x - t) ** 2)
    step = training.federated_round(simple, server, optax.sgd(1.0))
    batches = jnp.array([[2.0, 2.0], [10.0, 10.0]])
    fit = training.start(jnp.zeros(()), server)
    fit, seen = step(fit, training.Cohort(None, batches, jnp.array([2, 1])), None)
    assert float(fit.params) == 2.0
    assert int(optax.tree.get(fit.opt_state, "num_present")) == 1
    assert float(seen["loss"]) == 2.0


@in_ci
def test_personal_parameters_stay_with_their_client():
    server = optax.chain(co.mean(), optax.sgd(1.0))
    memory = training.client_memory(CLIENTS, personal=lambda params: MASK)
    step = training.federated_round(loss, server, optax.sgd(RATE), memory=memory)
    fit = training.start(PARAMS, server, memory)
    assert fit.params["head"] == optax.MaskedNode()
    assert [x.shape for x in jax.tree.leaves(fit.params)] == [(3,)]
    after, _ = jax.jit(step)(fit, cohort([4, 2]), jnp.array([1.0, 3.0]))
    bodies = []
    for i in (4, 2):
        own = PARAMS
        for _ in range(STEPS):
            grads = jax.grad(loss)(own, (TARGETS[i], SLOPES[i]))
            own = jax.tree.map(lambda p, g: p - RATE * g, own, grads)
        found = training.personalized(after.params, after.clients, i)
        np.testing.assert_allclose(found["head"], own["head"], rtol=1e-5)
        bodies.append(own["body"])
    np.testing.assert_allclose(
        after.params["body"], 0.25 * bodies[0] + 0.75 * bodies[1], rtol=1e-5
    )
    heads = np.asarray(after.clients.personal["head"])
    assert np.all(np.delete(heads, [4, 2], 0) == 1)
    several = training.personalized(after.params, after.clients, jnp.array([4, 2]))
    assert several["head"].shape == (2, 3)


FAULTS = {
    "nan": lambda c, w: (c, w),  # see below
    "no count": lambda c, w: (c, w.at[1].set(jnp.nan)),
    "less than none": lambda c, w: (c, w.at[1].set(-2.0)),
    "infinitely many": lambda c, w: (c, w.at[1].set(jnp.inf)),
    "nothing": lambda c, w: (c, w.at[1].set(0.0)),
    "died half-way": lambda c, w: (
        c._replace(num_done=jnp.array([STEPS, STEPS - 1, STEPS])),
        w,
    ),
    "nobody": lambda c, w: (c._replace(clients=c.clients.at[1].set(CLIENTS)), w),
    "nobody either": lambda c, w: (c._replace(clients=c.clients.at[1].set(-1)), w),
}


@pytest.mark.parametrize("name", cases(FAULTS, "nan"))
@pytest.mark.parametrize("rule", cases([co.mean, co.median], co.mean))
def test_a_fault_leaves_the_round_right_and_no_trace(rule, name):
    fit, step = everything(rule)
    fit = rounds(fit, step, [[0, 7, 3], [7, 2, 3]])
    batch, weights = FAULTS[name](cohort([0, 7, 3]), jnp.array([1.0, 2.0, 3.0]))
    if name == "nan":
        targets, slopes = batch.batches
        batch = batch._replace(batches=(targets.at[1, 2, 0].set(jnp.nan), slopes))
    after, metrics = step(fit, batch, weights)
    alone, alone_metrics = step(fit, cohort([0, 7, 3]), jnp.array([1.0, 0.0, 3.0]))
    assert_bits(after.params, alone.params)
    assert_bits(kept(after), kept(alone))
    assert_bits(after.clients.control, alone.clients.control)
    assert float(metrics["loss"]) == float(alone_metrics["loss"])
    others = np.delete(np.arange(CLIENTS), [0, 3])
    of_others = lambda fit: jax.tree.map(lambda leaf: leaf[others], kept(fit))
    assert_bits(of_others(after), of_others(fit))
    for now, before in zip(*map(jax.tree.leaves, map(kept, (after, fit))), strict=True):
        assert np.any(now[0] != before[0])
        assert np.any(now[3] != before[3])
    bad = int(optax.tree.get(after.opt_state, "num_nonfinite"))
    assert bad == (name in ("nan", "no count", "less than none", "infinitely many"))


@in_ci
def test_a_head_that_breaks_takes_its_client_out():
    """What never leaves a client is looked at there."""
    fit, step = everything()
    broken = fit.clients.personal["head"].at[7].set(3e38)
    personal = {**fit.clients.personal, "head": broken}
    fit = fit._replace(clients=fit.clients._replace(personal=personal))
    after, _ = step(fit, cohort([0, 7]), None)
    assert int(optax.tree.get(after.opt_state, "num_nonfinite")) == 1
    assert_bits(after.clients.personal["head"][7], fit.clients.personal["head"][7])
    alone, _ = step(fit, cohort([0, 7]), jnp.array([1.0, 0.0]))
    assert_bits(after.params, alone.params)


@in_ci
def test_batches_know_whose_they_are():
    data, counts = jnp.arange(12.0).reshape(4, 3), jnp.array([3, 1, 2, 3])
    draw = functools.partial(training.draw_examples, batch_size=2)
    make = functools.partial(
        training.client_batches, KEY, data, counts, draw, num_sampled=3, num_steps=5
    )
    plain, weights = make()(2)
    found, same = make(as_cohort=True)(2)
    np.testing.assert_array_equal(found.batches, plain)
    np.testing.assert_array_equal(same, weights)
    np.testing.assert_array_equal(counts[found.clients].astype(jnp.float32), weights)
    assert found.num_done is None


def test_bad_arguments():
    with pytest.raises(ValueError, match="`num_clients` must be at least 1; got 0"):
        training.client_memory(0)
    with pytest.raises(ValueError, match="`control_variates` must be True or False"):
        training.client_memory(1, control_variates="yes")
    server = optax.chain(co.mean(), optax.sgd(1.0))
    with pytest.raises(ValueError, match="`chunk_size` must be at least 1; got 0"):
        training.federated_round(loss, server, optax.sgd(1.0), chunk_size=0)
    memory = training.client_memory(CLIENTS)
    step = training.federated_round(loss, server, optax.sgd(1.0), memory=memory)
    fit = training.start(PARAMS, server, memory)
    with pytest.raises(ValueError, match=r"`batches` must be a `training.Cohort`"):
        step(fit, cohort([0]).batches, None)
    with pytest.raises(ValueError, match=r"`fit.clients` must be .*; got None\. Start"):
        step(training.start(PARAMS, server), cohort([0]), None)
