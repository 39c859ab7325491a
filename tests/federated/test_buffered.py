"""Buffers of late updates: one by one, some at a time, old, broken; published."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from consensus_optax import federated
from tests._pinned import LARGE

PARAMS = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(()), "n": jnp.zeros((), jnp.int32)}
ROWS = {
    "w": jnp.asarray(LARGE[:, :4].reshape(-1, 2, 2), jnp.float32),
    "b": jnp.asarray(LARGE[:, 4], jnp.float32),
    "n": jnp.zeros(10, jnp.int32),
}
COUNTS = jnp.asarray(0.5 + np.arange(10) % 3, jnp.float32)


def take(places):
    return jax.tree.map(lambda leaf: leaf[jnp.asarray(places)], ROWS)


def fed(server, groups, versions=None, weights=COUNTS):
    """Updates and states of calls that bring these rows; all calls of one shape."""
    state, seen = server.init(PARAMS), []
    update = jax.jit(server.update)
    for places in groups:
        extra = {"weights": weights[jnp.asarray(places)]}
        if versions is not None:
            extra["versions"] = jnp.asarray(versions)[jnp.asarray(places)]
        found, state = update(take(places), state, PARAMS, **extra)
        seen.append((found, state))
    return seen


def whole(rule, places, weights=COUNTS):
    return rule.update(
        take(places), rule.init(PARAMS), PARAMS, weights=weights[jnp.asarray(places)]
    )[0]


def assert_same(one, other, rtol=1e-5):
    # the same rows in another stack: sums in another order
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), one, other
    )


@pytest.mark.parametrize(
    "rule",
    [
        co.mean(),
        *[
            pytest.param(rule, marks=pytest.mark.slow)
            for rule in (co.krum(1), co.median(), co.geometric_median(), co.sign_vote())
        ],
    ],
    ids=str,
)
def test_one_by_one_is_all_at_once(rule):
    server = federated.buffered(rule, 5)
    seen = fed(server, [[i] for i in range(10)])
    for number, (update, state) in enumerate(seen):
        assert int(state.num_held) == (number + 1) % 5
        assert int(state.version) == (number + 1) // 5
        ready = number in (4, 9)
        assert bool(optax.tree.get(state, "consensus_ready")) is ready
        if not ready:
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(update))
    assert_same(seen[4][0], whole(rule, range(5)))
    assert_same(seen[9][0], whole(rule, range(5, 10)))


@pytest.mark.slow
def test_no_update_is_lost_where_more_come_than_are_wanted():
    rule = co.median()
    weights = COUNTS.at[2].set(0)  # one of the ten never came
    groups = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    seen = fed(federated.buffered(rule, 4), groups, None, weights)
    assert [int(state.num_held) for _, state in seen] == [2, 0, 3]
    assert_same(seen[1][0], whole(rule, range(6), weights))
    np.testing.assert_array_equal(seen[2][1].weights, weights[6:9])


@pytest.mark.slow
def test_published_formula():
    """FedBuff: the sum of s(age) times the update, over K."""
    server = federated.buffered(
        co.mean(), 4, staleness=federated.polynomial_staleness(), scales="rows"
    )
    versions = [0, 0, 0, 0, 0, 1, 0, 1]
    seen = fed(server, [[i] for i in range(8)], versions, jnp.ones(10))
    first, second = seen[3][0], seen[7][0]
    np.testing.assert_allclose(first["b"], LARGE[:4, 4].mean(), rtol=1e-5)
    worth = np.array([2**-0.5, 1.0, 2**-0.5, 1.0])
    wanted = (worth * LARGE[4:8, 4]).sum() / 4
    np.testing.assert_allclose(second["b"], wanted, rtol=1e-5)
    np.testing.assert_allclose(seen[7][1].mean_age, 0.5)
    # as weights they are shares instead
    server = federated.buffered(
        co.mean(), 4, staleness=federated.polynomial_staleness()
    )
    seen = fed(server, [[i] for i in range(8)], versions, jnp.ones(10))
    wanted = np.average(LARGE[4:8, 4], weights=worth)
    np.testing.assert_allclose(seen[7][0]["b"], wanted, rtol=1e-5)


@pytest.mark.slow
def test_too_old_is_not_there_but_counts():
    hard = federated.hinge_staleness(float("inf"), 0)
    server = federated.buffered(co.mean(), 2, staleness=hard)
    seen = fed(server, [[0], [1], [2], [3]], [0, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(seen[3][0]["b"], LARGE[3, 4], rtol=1e-6)


def test_a_broken_update_takes_no_place():
    rows = take([0])
    broken = {**rows, "b": jnp.array([jnp.nan])}
    server = federated.buffered(co.mean(), 2)
    state = server.init(PARAMS)
    _, state = server.update(broken, state, PARAMS)
    assert (int(state.num_held), int(state.num_refused)) == (0, 1)
    _, state = server.update(rows, state, PARAMS)
    update, state = server.update(take([1]), state, PARAMS)
    np.testing.assert_allclose(update["b"], LARGE[:2, 4].mean(), rtol=1e-6)


@pytest.mark.slow
def test_the_servers_optimizer_stands_still_meanwhile():
    server = optax.chain(
        federated.buffered(co.mean(), 3), co.skip_if_empty(optax.sgd(1.0, momentum=0.5))
    )
    params, state = jnp.zeros(1), None
    state = server.init(params)
    steps = []
    for _ in range(6):
        row, values = jnp.ones((1, 1)), jnp.ones(1)
        update, state = server.update(row, state, params, values=values)
        steps.append(float(update[0]))
    assert steps == [0, 0, -1, 0, 0, -1.5]
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert shapes(state) == shapes(server.init(params))


def test_bad_arguments():
    with pytest.raises(ValueError, match="`rule` must be a reducer; got 'str'"):
        federated.buffered("mean", 2)
    with pytest.raises(ValueError, match="`num_updates` must be at least 1; got 0"):
        federated.buffered(co.mean(), 0)
    with pytest.raises(ValueError, match="Did you mean 'rows'"):
        federated.buffered(co.mean(), 2, scales="row")
    with pytest.raises(ValueError, match="`staleness` must be a function of"):
        federated.buffered(co.mean(), 2, staleness=0.5)
    server = federated.buffered(co.mean(), 2)
    with pytest.raises(ValueError, match=r"`versions` must have shape \(1,\)"):
        server.update(take([0]), server.init(PARAMS), PARAMS, versions=jnp.zeros(2))
    with pytest.raises(ValueError, match="`opt_state` must hold one buffer"):
        federated.buffer_of(optax.sgd(1.0).init(PARAMS))


def test_a_target_is_a_tree_like_the_parameters():
    """The rule sees trees like these: with a leaf that does not move, too."""
    params = {"w": jnp.zeros((2, 3)), "ids": jnp.arange(4)}
    draw = np.random.default_rng(0).normal
    target = {"w": jnp.asarray(draw(size=(2, 3)), jnp.float32), "ids": params["ids"]}
    rows = {"w": jnp.asarray(draw(size=(4, 2, 3)), jnp.float32)}
    rows["ids"] = jnp.zeros((4, 4), jnp.int32)
    rule = co.select_toward(top_k=2)
    server = co.federated.buffered(rule, 4)
    found, _ = server.update(rows, server.init(params), params, target=target)
    wanted, _ = rule.update(rows, rule.init(params), params, target=target)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
