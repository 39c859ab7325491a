"""Federated rounds: FedAvg by loops, sampling, dishonest clients, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

import consensus_optax as co
from consensus_optax import attacks, training

pytestmark = pytest.mark.slow

CLIENTS, STEPS, BATCH, WIDTH = 5, 3, 4, 2
COUNTS = jnp.array([4.0, 1.0, 2.0, 8.0, 1.0])
FEDAVG = optax.chain(co.mean(), optax.sgd(1.0))


def loss(params, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def gradient(w, b, x, y):
    """The same in NumPy, float64."""
    error = x @ w + b - y
    return x.T @ error / len(y), error.mean()


@pytest.fixture(name="params")
def _params():
    return {"w": jnp.array([0.5, -1.0]), "b": jnp.array(0.25)}


@pytest.fixture(name="batches")
def _batches():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(CLIENTS, STEPS, BATCH, WIDTH)).astype(np.float32)
    y = rng.normal(size=(CLIENTS, STEPS, BATCH)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(y)


def one_round(params, batches, weights=COUNTS, server=FEDAVG, rate=0.2, **options):
    step = training.federated_round(loss, server, optax.sgd(rate), **options)
    return step(training.start(params, server), batches, weights)


def assert_same(one, other, **tolerance):
    compare = functools.partial(np.testing.assert_allclose, **tolerance)
    jax.tree.map(compare, one, other)


def test_one_local_step_is_the_weighted_mean_gradient(params, batches):
    first = jax.tree.map(lambda leaf: leaf[:, :1], batches)
    fit, metrics = one_round(params, first, rate=1.0)
    grads, losses = [], []
    for x, y in zip(*(np.asarray(leaf[:, 0], float) for leaf in first), strict=True):
        grads.append(np.append(*gradient([0.5, -1.0], 0.25, x, y)))
        losses.append(0.5 * np.mean((x @ [0.5, -1.0] + 0.25 - y) ** 2))
    mean = np.average(grads, axis=0, weights=COUNTS)
    np.testing.assert_allclose(fit.params["w"], [0.5, -1.0] - mean[:2], rtol=1e-5)
    np.testing.assert_allclose(fit.params["b"], 0.25 - mean[2], rtol=1e-5)
    expected = np.average(losses, weights=COUNTS)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_one_local_step_is_a_step_on_rows(params, batches):
    """Every bit of it: rows are minus the updates, not differences of parameters."""
    server = optax.chain(co.krum(1), optax.sgd(0.1))
    first = jax.tree.map(lambda leaf: leaf[:, :1], batches)
    federated = one_round(params, first, server=server, rate=1.0)
    examples = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[3:]), first)
    step = training.row_step(loss, server, group_size=BATCH)
    rows = step(training.start(params, server), examples, COUNTS)
    assert_same(federated, rows, rtol=1e-6)


def test_many_local_steps_are_federated_averaging(params, batches):
    server = optax.chain(co.mean(), optax.sgd(1.0))
    local = optax.sgd(0.2, momentum=0.9)
    step = training.federated_round(loss, server, local)
    fit, _ = step(training.start(params, server), batches, COUNTS)
    ends = []
    for xs, ys in zip(*(np.asarray(leaf, float) for leaf in batches), strict=True):
        w, b, moment = np.array([0.5, -1.0]), 0.25, np.zeros(3)
        for x, y in zip(xs, ys, strict=True):
            moment = 0.9 * moment + np.append(*gradient(w, b, x, y))
            w, b = w - 0.2 * moment[:2], b - 0.2 * moment[2]
        ends.append(np.append(w, b))
    mean = np.average(ends, axis=0, weights=COUNTS)
    found = np.append(fit.params["w"], fit.params["b"])
    np.testing.assert_allclose(found, mean, rtol=0, atol=1e-6)  # float32, many steps


@pytest.mark.parametrize("server", [co.mean(), co.median(), co.krum(0), co.sign_vote()])
def test_a_client_of_weight_zero_or_with_nan_is_no_client(params, batches, server):
    server = optax.chain(server, optax.sgd(1.0))
    few = jax.tree.map(lambda leaf: leaf[:-1], batches)
    alone, _ = one_round(params, few, COUNTS[:-1], server)
    absent, _ = one_round(params, batches, COUNTS.at[-1].set(0), server)
    broken = (batches[0].at[-1, 1].set(jnp.nan), batches[1])
    nonfinite, _ = one_round(params, broken, COUNTS, server)
    # other sums in another order
    assert_same(absent.params, alone.params, rtol=1e-6, atol=1e-7)
    assert_same(nonfinite.params, alone.params, rtol=1e-6, atol=1e-7)
    assert int(optax.tree.get(nonfinite.opt_state, "num_nonfinite")) == 1


def test_counts_matter(params, batches):
    one, _ = one_round(params, batches)
    other, _ = one_round(params, batches, None)
    assert not np.allclose(one.params["w"], other.params["w"], rtol=1e-3)


@pytest.mark.standard_promotion  # Adam
def test_local_optimizers_start_anew(params, batches):
    rows = training.local_updates(loss, optax.adam(0.1))
    same = jax.tree.map(lambda leaf: leaf[jnp.array([0, 0])], batches)
    twice = jax.tree.map(lambda leaf: leaf[0], rows(params, same)[1])
    again = jax.tree.map(lambda leaf: leaf[1], rows(params, same)[1])
    assert_same(twice, again, rtol=0)
    first = rows(params, jax.tree.map(lambda leaf: leaf[:, :1], batches))[1]
    # Adam's first step is its rate in every coordinate, whatever the gradient
    np.testing.assert_allclose(np.abs(first["w"]), 0.1, rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_tiny_steps_are_not_rounded_away(dtype):
    rows = training.local_updates(lambda w, x: (w * x).sum(), optax.sgd(2.0**-30))
    _, moved = rows(jnp.ones(3, dtype), jnp.ones((2, 4, 3), dtype))
    assert moved.dtype == jnp.float32
    assert moved.tolist() == [[2.0**-28] * 3] * 2


def test_random_keys_may_be_in_a_batch():
    noisy = lambda w, key: w * jax.random.normal(key, ())
    keys = jax.random.split(jax.random.key(0), (4, 2))
    losses, moved = training.local_updates(noisy, optax.sgd(1.0))(jnp.ones(()), keys)
    draws = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, ())))(keys)
    np.testing.assert_allclose(moved, draws.sum(1), rtol=1e-6)
    np.testing.assert_allclose(losses, draws[:, 0], rtol=1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
def test_clients_over_devices(params, check_vma):
    """Each device makes the rows of its own clients, not a sum over the devices."""
    rows = training.local_updates(loss, optax.sgd(0.2, momentum=0.9))
    rng = np.random.default_rng(1)
    batches = jnp.asarray(rng.normal(size=(16, STEPS, BATCH, WIDTH)), jnp.float32)
    batches = batches, batches.sum(-1) + 1
    mesh = jax.make_mesh((8,), ("clients",), axis_types=(AxisType.Auto,))
    spread, whole = PartitionSpec("clients"), PartitionSpec()
    spreading = jax.shard_map(
        rows,
        mesh=mesh,
        in_specs=(whole, spread),
        out_specs=spread,
        check_vma=check_vma,
    )
    assert_same(spreading(params, batches), rows(params, batches), rtol=1e-6, atol=1e-7)


ATTACKS = {
    "gaussian": attacks.gaussian,
    "flip": functools.partial(attacks.sign_flip, scale=1e3),
    "huge": functools.partial(attacks.infinite, value=1e30),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_robust_rules_bound_an_attack_and_the_mean_does_not(params, batches, attack):
    key = jax.random.key(0)

    def dishonest(rows, step):
        honest = jax.tree.map(lambda leaf: leaf[:-1], rows)
        bad = attack(honest, 1, jax.random.fold_in(key, step))
        return attacks.join(honest, bad)

    def moves(rule):
        server = optax.chain(rule, optax.sgd(1.0))
        fit, _ = one_round(params, batches, COUNTS, server, attack=dishonest)
        return np.append(fit.params["w"] - params["w"], fit.params["b"] - params["b"])

    _, rows = training.local_updates(loss, optax.sgd(0.2))(params, batches)
    honest = -np.hstack([rows["w"], rows["b"][:, None]])[:-1]
    low, high = honest.min(0) - 1e-6, honest.max(0) + 1e-6  # rounding
    for rule in (co.median(), co.trimmed_mean(1), co.krum(1)):
        found = moves(rule)
        assert np.all((low <= found) & (found <= high))
    assert np.any(np.abs(moves(co.mean())) > 10 * np.abs(honest).max())


def test_an_attack_sees_the_number_of_the_round(params, batches):
    seen = lambda rows, step: jax.tree.map(
        lambda leaf: jnp.full_like(leaf, step.astype(leaf.dtype)), rows
    )
    step = training.federated_round(loss, FEDAVG, optax.sgd(0.2), attack=seen)
    batch_at = lambda number: (batches, COUNTS)
    fit, _ = training.train(step, training.start(params, FEDAVG), batch_at, 4)
    np.testing.assert_allclose(params["b"] - fit.params["b"], 0 + 1 + 2 + 3)


def test_sampling_is_without_replacement_and_of_those_present():
    counts = jnp.array([3, 0, 1, 5, 0, 2, 7, 4])
    keys = jax.random.split(jax.random.key(0), 600)
    chosen, weights = jax.vmap(lambda key: training.sample_clients(key, counts, 3))(
        keys
    )
    assert all(len(set(row)) == 3 for row in chosen.tolist())
    np.testing.assert_array_equal(weights, counts[chosen])
    often = np.bincount(np.ravel(chosen), minlength=8)
    assert often[[1, 4]].sum() == 0
    # each of the six in half of 600 rounds, deviation 12.2: within 5 deviations
    assert np.all(np.abs(often[[0, 2, 3, 5, 6, 7]] - 300) < 61)


def test_too_few_clients_leave_places_of_weight_zero():
    counts = jnp.array([0, 2, 0, 3])
    for seed in range(10):
        chosen, weights = training.sample_clients(jax.random.key(seed), counts, 3)
        assert set(chosen[:2].tolist()) == {1, 3}
        assert len(set(chosen.tolist())) == 3
        assert float(weights[2]) == 0


def test_batches_come_from_their_client_and_never_from_padding():
    counts = jnp.array([3, 1, 2, 0, 4])
    owner = jnp.broadcast_to(jnp.arange(5)[:, None], (5, 4))
    place = jnp.broadcast_to(jnp.arange(4)[None, :], (5, 4))
    draw = functools.partial(training.draw_examples, batch_size=6)
    batch_at = training.client_batches(
        jax.random.key(0), (owner, place), counts, draw, num_sampled=4, num_steps=3
    )
    drawn = set()
    for number in range(20):
        (owners, places), weights = batch_at(number)
        assert owners.shape == (4, 3, 6)
        assert np.all(owners == owners[:, :1, :1])  # one client in all of its steps
        clients = np.asarray(owners[:, 0, 0])
        assert len(set(clients.tolist())) == 4
        np.testing.assert_array_equal(weights, counts[clients])
        assert np.all(places < counts[clients][:, None, None])
        drawn |= set((np.ravel(owners) * 10 + np.ravel(places)).tolist())
    assert len(drawn) == 10  # every example there is
    again, _ = batch_at(7)
    assert_same(again, batch_at(jnp.asarray(7))[0], rtol=0)


def test_training_converges_in_one_trace():
    traces = []
    targets = jnp.array([[1.0, 1.0], [3.0, 3.0], [8.0, 99.0]])
    counts = jnp.array([2, 2, 1])

    def squared(w, batch):
        traces.append(1)
        return 0.5 * jnp.mean((w - batch) ** 2)

    step = jax.jit(training.federated_round(squared, FEDAVG, optax.sgd(0.5)))
    draw = functools.partial(training.draw_examples, batch_size=1)
    batch_at = training.client_batches(
        jax.random.key(0), targets, counts, draw, num_sampled=3, num_steps=2
    )
    fit = training.start(jnp.zeros(()), FEDAVG)
    fit, _ = step(fit, *batch_at(0))
    once = len(traces)
    for number in range(1, 20):
        fit, metrics = step(fit, *batch_at(number))
    assert len(traces) == once
    # (2 * 1 + 2 * 3 + 1 * 8) / 5; each round takes three quarters of what is left
    np.testing.assert_allclose(fit.params, 3.2, rtol=1e-5)
    assert metrics["loss"].shape == ()


def test_a_round_in_which_nobody_counts_has_no_loss(params, batches):
    fit, metrics = one_round(params, jax.tree.map(lambda leaf: leaf * jnp.nan, batches))
    assert np.isnan(metrics["loss"])
    assert_same(fit.params, params)


def test_bad_arguments():
    key, counts = jax.random.key(0), jnp.ones(3)
    with pytest.raises(ValueError, match=r"`num_sampled` must be at most .* 3; got 4"):
        training.sample_clients(key, counts, 4)
    with pytest.raises(ValueError, match="`num_sampled` must be at least 1; got 0"):
        training.sample_clients(key, counts, 0)
    with pytest.raises(ValueError, match="`num_steps` must be at least 1; got 0"):
        training.client_batches(key, counts, counts, None, num_sampled=1, num_steps=0)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1; got 0"):
        training.draw_examples(key, counts, 1, batch_size=0)
    forgotten = optax.sgd(1.0)
    fit = training.start(jnp.zeros(2), forgotten)
    step = training.federated_round(
        lambda w, batch: jnp.sum(w * batch), forgotten, optax.sgd(1.0)
    )
    wanted = r"is \(3, 2\), its parameter \(2,\). Is the reducer missing\?"
    with pytest.raises(ValueError, match=wanted):
        step(fit, jnp.zeros((3, 1, 2)), None)
