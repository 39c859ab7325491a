"""Modules with leaves that are no numbers, as Equinox has them, in every way."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from tests.engines.test_sharded import mesh_of

pytestmark = pytest.mark.standard_promotion  # Equinox and optax mix types

X = jnp.float32(np.random.default_rng(0).normal(size=(6, 3)))
Y = jnp.float32(np.random.default_rng(1).normal(size=(6, 2)))


class Model(eqx.Module):
    """Functions, flags, a number of Python, integers, a static field: all pass."""

    mlp: eqx.nn.MLP
    dropout: eqx.nn.Dropout
    places: jax.Array
    name: str = eqx.field(static=True)

    def __init__(self, key):
        self.mlp = eqx.nn.MLP(3, 2, 4, 1, activation=jax.nn.relu, key=key)
        self.dropout = eqx.nn.Dropout(0.5, inference=True)
        self.places = jnp.arange(3)
        self.name = "model"

    def __call__(self, x):
        assert self.dropout.p == 0.5
        return self.dropout(self.mlp(x[self.places]))


MODEL = Model(jax.random.key(0))
PARAMS = eqx.filter(MODEL, eqx.is_inexact_array)


def loss(model, batch):
    x, y = batch
    with jax.numpy_rank_promotion("allow"):
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def by_equinox(group_size=1):
    grads = [
        eqx.filter_grad(loss)(MODEL, (X[i : i + group_size], Y[i : i + group_size]))
        for i in range(0, 6, group_size)
    ]
    return jax.tree.map(lambda *rows: jnp.stack(rows), *grads)


def assert_same(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, got, wanted)


@pytest.mark.parametrize("materialize", [True, False])
def test_rows_are_those_of_filter_grad(materialize):
    grad = co.per_example_grad(loss, num_rows=3, materialize=materialize)
    rows = co.materialize(eqx.filter_jit(grad)(MODEL, (X, Y)))
    assert_same(rows, by_equinox(2))
    assert rows.mlp.activation is None
    assert rows.dropout.p is None
    assert rows.places is None


@pytest.mark.whole_zoo
@pytest.mark.parametrize(
    "how", [{}, {"microbatch_size": 2}, {"hold_rows": False}], ids=str
)
def test_reduced(how):
    rule = co.mean()
    step = co.value_and_reduced_grad(loss, rule, **how)
    value, update, _ = step(MODEL, (X, Y), state=rule.init(PARAMS))
    np.testing.assert_allclose(value, loss(MODEL, (X, Y)), rtol=1e-5)
    assert_same(update, jax.tree.map(lambda rows: rows.mean(0), by_equinox()))


@pytest.mark.whole_zoo
def test_tasks():
    both = lambda model, batch: jnp.stack([loss(model, batch), 2 * loss(model, batch)])
    rows = co.materialize(co.task_grad(both)(MODEL, (X, Y)))
    whole = eqx.filter_grad(loss)(MODEL, (X, Y))
    assert_same(rows, jax.tree.map(lambda g: jnp.stack([g, 2 * g]), whole))


@pytest.mark.whole_zoo
@pytest.mark.parametrize("num_rows", [None, 1])
def test_of_a_worker(num_rows):
    params, rest = eqx.partition(MODEL, eqx.is_inexact_array)

    def run(params, batch):
        model = eqx.combine(params, rest)
        return co.materialize(
            co.worker_grad(loss, "data", num_rows=num_rows)(model, batch)
        )

    mapped = jax.shard_map(
        run, mesh=mesh_of(2), in_specs=(P(), P("data")), out_specs=P("data")
    )
    assert_same(jax.jit(mapped)(params, (X, Y)), by_equinox(3))


@pytest.mark.whole_zoo
def test_training():
    """The loop of Equinox's documentation, one line of which is ours."""
    tx = optax.chain(co.mean(), optax.adam(2e-2))
    state, model = tx.init(PARAMS), MODEL

    @eqx.filter_jit
    def step(model, state):
        losses, rows = co.per_example_value_and_grad(loss)(model, (X, Y))
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = tx.update(rows, state, params)
        return eqx.apply_updates(model, updates), state, losses.mean()

    for _ in range(50):
        model, state, value = step(model, state)
    assert value < loss(MODEL, (X, Y)) / 2


@pytest.mark.slow
def test_explained_and_checked(capsys):
    assert co.check_per_example(loss, MODEL, (X, Y)) == []
    co.explain(loss, MODEL, (X, Y))
    assert len(capsys.readouterr().out.splitlines()) == 4
