"""Flax models as functions, and rows through Flax's own steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx
from flax.training.train_state import TrainState

import consensus_optax as co
from consensus_optax import training


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.linear(x))


def test_functional_is_the_model_and_pure():
    model = Dropped(nnx.Rngs(0))
    apply, params = training.functional(model)
    x = jnp.ones((4, 2))
    first, second = apply(params, x), jax.jit(apply)(params, x)
    np.testing.assert_allclose(first, second)
    np.testing.assert_allclose(first, model(x))


def test_init_many_makes_each_model_as_alone():
    make = lambda rngs: nnx.Linear(2, 3, rngs=rngs)
    keys = jax.random.split(jax.random.key(0), (2, 3))
    many = training.init_many(make, keys)
    alone = nnx.state(make(nnx.Rngs(keys[1, 2])), nnx.Param)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1, 2], b, rtol=1e-6), many, alone
    )


def linen_state():
    model = linen.Dense(1)
    x = jax.random.normal(jax.random.key(0), (4, 3))
    params = model.init(jax.random.key(1), x)
    loss = lambda params, x: (model.apply(params, x) ** 2).mean()
    tx = optax.chain(co.sign_consensus(), optax.sgd(0.1))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    return state, co.per_example_grad(loss)(params, x)


def test_apply_rows_is_apply_gradients_without_extras():
    state, rows = linen_state()
    ours, theirs = training.apply_rows(state, rows), state.apply_gradients(grads=rows)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert int(ours.step) == 1


def test_apply_rows_hands_weights_on():
    state, rows = linen_state()
    two = jax.tree.map(lambda r: r[:2], co.materialize(rows))
    weighted = training.apply_rows(state, rows, weights=jnp.array([1.0, 1.0, 0.0, 0.0]))
    alone = training.apply_rows(state, two)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        weighted.params,
        alone.params,
    )
