"""Values of sign consensus: its seed's examples, the AND-mask, and a whole training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import consensus_optax as co
from tests._reference import published_and_mask
from tests._stacks import first_update
from tests.engines.test_sharded import mesh_of


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        ((0.5, 0.6, -0.8), 0.0),
        ((0.5, 0.6, 0.2), 0.2),
        ((-0.5, -0.6, -0.2), -0.2),
        ((0.5, 0.6, 0.0), 0.0),
    ],
)
def test_the_worked_examples(entries, wanted):
    (result,), _ = first_update(co.sign_consensus(), jnp.float32(entries)[:, None])
    assert result == np.float32(wanted)


def test_is_the_minmod_of_all_rows():
    rows = jnp.float32(np.random.default_rng(0).normal(1, 1, (5, 40)))
    result, _ = first_update(co.sign_consensus(), rows)
    np.testing.assert_array_equal(result, functools.reduce(co.minmod, rows))


def test_consensus_ratio_of_random_signs():
    """Four random signs agree in one case of eight."""
    rows = jnp.float32(np.random.default_rng(0).normal(size=(4, 20000)))
    _, state = first_update(co.sign_consensus(), rows)
    assert state.consensus_ratio == pytest.approx(1 / 8, abs=0.01)  # 4 sigma


def test_the_and_mask_of_its_authors():
    """A threshold tau on the mean sign is a quorum of (1 + tau) / 2, without zeros."""
    random = np.random.default_rng(1)
    rows = np.float32(random.normal(0.4, 1, (9, 40))).astype(float)

    @jax.jit
    def masked(quorum, weights):
        rule, params = co.sign_consensus(quorum, "mean"), jnp.zeros(40)
        stack = jnp.float32(rows)
        return rule.update(stack, rule.init(params), params, weights=weights)

    for count in range(2, 10):
        weights = jnp.float32(np.arange(9) < count)
        for tau in (0.1, 0.2, 0.5, 0.6, 0.8, 1.0):
            result, _ = masked((1 + tau) / 2, weights)
            wanted = published_and_mask(rows[:count].tolist(), tau)
            size = np.abs(wanted).max()
            np.testing.assert_allclose(result, wanted, rtol=0, atol=1e-6 * size)


def test_weights_are_votes():
    rows = jnp.array([[1.0], [2.0], [-3.0]])
    reducer = co.sign_consensus(0.7, "agreeing_mean")
    assert first_update(reducer, rows)[0] == 0
    assert first_update(reducer, rows, weights=jnp.array([3.0, 1, 1]))[0] == 1.25
    assert first_update(reducer, rows, weights=jnp.array([1.0, 1, 6]))[0] == -3


def test_a_quorum_is_reached_exactly():
    """3 of 5 rows are 0.6 of them, although 0.6 * 5 > 3 in binary."""
    rows = jnp.array([[1.0], [2.0], [3.0], [-1.0], [0.0]])
    assert first_update(co.sign_consensus(0.6), rows)[0] == 1
    assert first_update(co.sign_consensus(0.61), rows)[0] == 0


def test_rescaling_divides_by_the_surviving_share():
    rows = jnp.array([[1.0, 1, -1, 1], [2.0, -1, 1, 1]])
    result, state = first_update(co.sign_consensus(rescale=True), rows)
    assert result.tolist() == [2, 0, 0, 2]
    assert state.consensus_ratio == 0.5


# Four environments, each with a coordinate of its own and one small one in common.
X = 3 * jnp.concatenate([jnp.eye(4), 0.1 * jnp.ones((4, 1))], 1)


def trained(reducer):
    """Where squared loss, a step of 0.3 and weight decay after the rule end."""
    loss = lambda w, x: jnp.mean((x @ w - 1) ** 2)
    tx = optax.chain(reducer, optax.add_decayed_weights(0.01), optax.sgd(0.3))

    @jax.jit
    def run(w):
        def step(carry, _):
            w, state = carry
            updates, state = tx.update(co.per_example_grad(loss)(w, X), state, w)
            return (optax.apply_updates(w, updates), state), None

        return jax.lax.scan(step, (w, tx.init(w)), None, 4000)[0][0]

    return np.asarray(run(jnp.float32([0.1, -0.1, 0.05, 0.02, 0.1])))


@pytest.mark.standard_promotion  # optax's sgd multiplies by a Python float
@pytest.mark.parametrize("magnitude", ["mean", "geometric", "min", "agreeing_mean"])
def test_only_the_shared_coordinate_is_learned(magnitude):
    w = trained(co.sign_consensus(magnitude=magnitude))
    np.testing.assert_allclose(w[:4], 0, atol=1e-3)  # decayed by 0.003 a step
    assert 2.8 < w[4] < 10 / 3  # 1 / 0.3 but for the weight decay


@pytest.mark.standard_promotion  # as above
def test_the_mean_learns_a_patchwork():
    w = trained(co.mean())
    assert (w[:4] > 0.25).all()
    assert abs(w[4]) < 0.5


@pytest.mark.parametrize(("size", "devices"), [(2, None), (None, 2), (2, 2)], ids=str)
def test_what_matters_in_a_fold_is_said_of_all_rows(size, devices):
    """One row of twelve is against the others: they are a quorum of all rows alone.

    Neither of its microbatch nor of its device, where a magnitude would not be needed.
    """
    of_row = lambda w, batch: jnp.vdot(batch[0] @ w, batch[1])  # products of vectors
    left = jnp.arange(1.0, 13)[:, None] * jnp.array([[1.0, 2.0, 3.0]])
    right = jnp.ones((12, 3)).at[6].set(-1)
    reducer, w = co.sign_consensus(0.9), jnp.zeros((3, 3))
    state = reducer.init(w)
    if devices:
        reducer = co.sharded(reducer, "data")
    of_batch = co.value_and_reduced_grad(of_row, reducer, microbatch_size=size)
    step = lambda *batch: of_batch(w, batch, state=state)[1]
    if devices:
        specs = {"in_specs": PartitionSpec("data"), "out_specs": PartitionSpec()}
        step = jax.shard_map(step, mesh=mesh_of(devices), **specs)
    row = co.per_example_grad(of_row)(w, (left, right))
    assert co.is_outer_product(row)
    wanted = np.tile(left[0], (3, 1)).T  # the smallest, that of row 0
    np.testing.assert_array_equal(jax.jit(step)(left, right), wanted)
