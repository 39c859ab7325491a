"""Linen models with mutable collections and several streams, rows by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from consensus_optax import training
from tests.engines.test_sharded import mesh_of

pytestmark = pytest.mark.standard_promotion  # Flax mixes integers and floats

B = 6
X = jnp.float32(np.random.default_rng(0).normal(size=(B, 3)))
RNGS = {"dropout": jax.random.key(1), "noise": jax.random.key(2)}


class Model(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        calls = self.variable("calls", "count", lambda: jnp.array(0))
        calls.value += train
        x = nn.Dense(4)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        self.sow("intermediates", "hidden", x)
        x = nn.Dropout(0.1, deterministic=not train)(nn.relu(x))
        x += 0.1 * jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dense(1)(x)


MODEL = Model()
MUTABLE = ["batch_stats", "calls", "intermediates"]


def loss(variables, x, *, rngs):
    with jax.numpy_rank_promotion("allow"):
        y, updates = MODEL.apply(variables, x, rngs=rngs, mutable=MUTABLE)
    return jnp.mean((y - x.sum(-1, keepdims=True)) ** 2), (updates, y)


@pytest.fixture(name="variables")
def _variables():
    with jax.numpy_rank_promotion("allow"):
        made = MODEL.init({"params": jax.random.key(0), **RNGS}, X, train=False)
    return {name: made[name] for name in ("params", "batch_stats", "calls")}


def alone(variables, i, size):
    rngs = {name: jax.random.fold_in(key, i) for name, key in RNGS.items()}
    rest = {name: x for name, x in variables.items() if name != "params"}
    fun = lambda params: loss({"params": params, **rest}, X[i : i + size], rngs=rngs)
    (value, (updates, y)), grad = jax.value_and_grad(fun, has_aux=True)(
        variables["params"]
    )
    return value, updates, y, grad


def assert_close(got, wanted):
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, got, wanted)


ROWS_OF = training.linen_value_and_rows(loss, has_aux=True, num_rows=3)


@pytest.mark.slow
def test_rows_and_updates_are_those_of_calls_one_by_one(variables):
    weights = jnp.array([1.0, 2.0, 0.0])
    by_hand = [alone(variables, i, 2) for i in (0, 2, 4)]
    values, updates, ys, grads = zip(*by_hand, strict=True)
    run = jax.jit(lambda v: ROWS_OF(v, X, rngs=RNGS, weights=weights))
    (got, merged, aux), rows = run(variables)
    assert_close(got, jnp.stack(values))
    assert_close(aux, jnp.concatenate(ys))
    assert_close(co.materialize(rows), jax.tree.map(lambda *x: jnp.stack(x), *grads))
    mean = lambda a, b, c: (a + 2 * b) / 3
    stats = [x["batch_stats"] for x in updates]
    assert_close(merged["batch_stats"], jax.tree.map(mean, *stats))
    assert int(merged["calls"]["count"]) == 1
    assert merged["calls"]["count"].dtype == variables["calls"]["count"].dtype
    hidden = [x["intermediates"]["hidden"][0] for x in updates]
    assert_close(merged["intermediates"]["hidden"][0], jnp.concatenate(hidden))


@pytest.mark.slow
@pytest.mark.parametrize("ways", [{"microbatch_size": 2}, {"hold_rows": False}])
def test_collections_do_not_depend_on_how_rows_are_reduced(variables, ways):
    weights, rule = jnp.array([1.0, 2.0, 0.0]), co.krum(0)
    (values, merged, ys), rows = ROWS_OF(variables, X, rngs=RNGS, weights=weights)
    params, state = variables["params"], rule.init(variables["params"])
    update, after = rule.update(rows, state, params, weights=weights)
    reduced = training.linen_value_and_reduced_grad(
        loss, rule, has_aux=True, num_rows=3, **ways
    )
    run = jax.jit(lambda v: reduced(v, X, rngs=RNGS, state=state, weights=weights))
    (value, kept, aux), *got = run(variables)
    assert_close(got, [update, after])
    assert_close((kept, aux), (merged, ys))
    np.testing.assert_allclose(value, (values[0] + 2 * values[1]) / 3, rtol=1e-5)


@pytest.mark.slow
def test_a_train_state_with_statistics_keys_and_weights(variables):
    """The loop of Flax's documentation."""

    class State(TrainState):
        batch_stats: dict
        calls: dict

    tx = optax.chain(co.mean(), optax.adam(3e-2))
    state = State.create(
        apply_fn=MODEL.apply,
        params=variables["params"],
        tx=tx,
        batch_stats=variables["batch_stats"],
        calls=variables["calls"],
    )

    @jax.jit
    def step(state, key, weights):
        kept = {"batch_stats": state.batch_stats, "calls": state.calls}
        rngs = dict(zip(RNGS, jax.random.split(key), strict=True))
        (values, updates, _), rows = ROWS_OF(
            {"params": state.params, **kept}, X, rngs=rngs, weights=weights
        )
        updates = {name: updates[name] for name in kept}
        state = training.apply_rows(state, rows, weights=weights)
        return state.replace(**updates), values

    key, weights = jax.random.key(0), jnp.array([1.0, 1.0, 0.0])
    losses = []
    for i in range(60):
        state, values = step(state, jax.random.fold_in(key, i), weights)
        losses.append(float(values[:2].mean()))
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) / 2
    assert int(state.calls["count"]) == 60
    assert int(optax.tree.get(state.opt_state, "num_present")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
def test_on_a_mesh_all_is_as_on_one_device(variables, check_vma):
    rows_of = training.linen_value_and_rows(
        loss, has_aux=True, num_rows=1, axis_name="data"
    )

    def of_device(variables, x):
        (values, updates, _), rows = rows_of(variables, x, rngs=RNGS)
        kept = {name: updates[name] for name in ("batch_stats", "calls")}
        return values, co.materialize(rows), kept

    run = jax.shard_map(
        of_device,
        mesh=mesh_of(3),
        in_specs=(P(), P("data")),
        out_specs=(P("data"), P("data"), P()),
        check_vma=check_vma,
    )
    (values, updates, _), rows = ROWS_OF(variables, X, rngs=RNGS)
    kept = {name: updates[name] for name in ("batch_stats", "calls")}
    assert_close(jax.jit(run)(variables, X), (values, co.materialize(rows), kept))


@pytest.mark.parametrize(
    ("returned", "has_aux", "says"),
    [
        (lambda value: value, False, r"must return \(loss, updates\), .* has none"),
        (lambda value: (value, 3), False, r"must return \(loss, updates\)"),
        (lambda value: (value, {}), True, None),
        (lambda value: (value, (3, {})), True, r"\(loss, \(updates, aux\)\)"),
    ],
)
def test_what_the_loss_must_return(returned, has_aux, says):
    fun = lambda variables, x: returned(jnp.mean(x @ variables["params"]))
    rows_of = training.linen_value_and_rows(fun, has_aux=has_aux)
    if says is None:
        rows_of({"params": jnp.ones(3)}, X)
        return
    with pytest.raises(ValueError, match=says):
        rows_of({"params": jnp.ones(3)}, X)


def test_variables_without_parameters():
    rows_of = training.linen_value_and_rows(loss, has_aux=True)
    with pytest.raises(ValueError, match='a dict with "params", as of `init`; got'):
        rows_of(jnp.ones(3), X)
