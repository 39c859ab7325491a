"""Reducers under Flax's training loops, and their states in checkpoints."""

import flax.linen
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import consensus_optax as co
from tests._stacks import B
from tests.zoo import EVERY_FACTORY, FACTORIES

pytestmark = pytest.mark.standard_promotion  # Flax and optax mix integers and floats

every_reducer = pytest.mark.parametrize("row", EVERY_FACTORY)
X = jnp.sin(jnp.arange(B * 3.0).reshape(B, 3))
Y = X @ jnp.ones((3, 2)) + 0.1


def nnx_problem():
    """A model and the function that gives its rows."""
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    graph = nnx.graphdef(model)

    def loss(weights, batch):
        x, y = batch
        return jnp.mean((nnx.merge(graph, weights)(x) - y) ** 2)

    return model, lambda model: co.per_example_grad(loss)(nnx.state(model), (X, Y))


@every_reducer
def test_nnx_optimizer_takes_rows_and_weights(row):
    model, rows_of = nnx_problem()
    optimizer = nnx.Optimizer(
        model, optax.chain(row.make(), optax.adam(0.1)), wrt=nnx.Param
    )

    def step(model, optimizer):
        optimizer.update(model, rows_of(model), weights=jnp.ones(B))
        return nnx.state(model), nnx.state(optimizer)

    before = jax.tree.map(jnp.shape, (nnx.state(model), nnx.state(optimizer)))
    after = nnx.eval_shape(step, model, optimizer)
    assert jax.tree.map(lambda x: x.shape, after) == before


class Linear(flax.linen.Module):
    """The same model in linen."""

    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.Dense(2)(x)


def train_state(tx):
    model = Linear()
    state = TrainState.create(
        apply_fn=model.apply, params=model.init(jax.random.key(0), X), tx=tx
    )

    def loss(params, batch):
        x, y = batch
        return jnp.mean((model.apply(params, x) - y) ** 2)

    return state, lambda params: co.per_example_grad(loss)(params, (X, Y))


@every_reducer
def test_linen_train_state_takes_rows(row):
    state, rows_of = train_state(optax.chain(row.make(), optax.adam(0.1)))
    after = jax.eval_shape(lambda s: s.apply_gradients(grads=rows_of(s.params)), state)
    shapes = lambda tree: jax.tree.map(
        lambda x: (jnp.shape(x), jnp.result_type(x)), tree
    )
    assert shapes(after) == shapes(state)


def test_both_flax_loops_train_alike():
    """Thirty steps of consensus, compiled, from the same weights."""
    tx = optax.chain(co.sign_consensus(0.6), optax.adam(0.1))
    model, rows_of = nnx_problem()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    state, rows_of_params = train_state(tx)
    weights = {"kernel": model.kernel[...], "bias": model.bias[...]}
    state = state.replace(params={"params": {"Dense_0": weights}})
    error = lambda: float(jnp.mean((model(X) - Y) ** 2))
    before = error()

    @nnx.jit
    def step(model, optimizer, state):
        optimizer.update(model, rows_of(model))
        return state.apply_gradients(grads=rows_of_params(state.params))

    for _ in range(30):
        state = step(model, optimizer, state)
    trained = state.params["params"]["Dense_0"]
    np.testing.assert_array_equal(model.kernel[...], trained["kernel"])
    np.testing.assert_array_equal(model.bias[...], trained["bias"])
    assert error() < before / 10


def optimizer_states():
    """A state of every reducer and friend, filled with distinguishable numbers."""
    parameters = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    friends = {
        "skip_if_empty": co.skip_if_empty(optax.adam(0.1)),
        "ema_agreement": co.ema_agreement(),
        "clip_examples": co.clip_examples(1.0),
    }
    every = {str(row): optax.chain(row.make(), optax.adam(0.1)) for row in FACTORIES}
    states = {name: tx.init(parameters) for name, tx in {**every, **friends}.items()}
    leaves, treedef = jax.tree.flatten(states)
    filled = [
        jnp.asarray((np.arange(x.size) + k) % 5, x.dtype).reshape(x.shape)
        for k, x in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, filled), states


def assert_same(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(
        lambda x: x.dtype, wanted
    )


def test_states_return_from_flax_bytes():
    states, fresh = optimizer_states()
    data = flax.serialization.to_bytes(states)
    assert_same(flax.serialization.from_bytes(fresh, data), states)


def test_states_return_from_an_orbax_checkpoint(tmp_path):
    states, fresh = optimizer_states()
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step", states)
        checkpointer.wait_until_finished()
        assert_same(checkpointer.restore(tmp_path / "step", fresh), states)
