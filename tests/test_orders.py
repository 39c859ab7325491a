"""Every row of the table of docs/orders.md, and what does not work."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import consensus_optax as co
from tests._orders import (
    BATCH,
    PARAMS,
    assert_close,
    first_update,
    gradient,
    has_parameter_shapes,
    loss,
    rows_of,
)

pytestmark = pytest.mark.standard_promotion  # optax mixes its counts with floats

PAGE = Path(__file__).parents[1] / "docs" / "orders.md"


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.numpy_rank_promotion("allow"):
        yield


def clip_or_normalize():
    short = first_update(optax.chain(co.clip_examples(1.0), co.mean()))
    assert 0 < optax.tree.norm(short) <= 1 + 1e-5
    with pytest.raises((TypeError, NotImplementedError)):
        first_update(optax.chain(optax.clip_by_global_norm(1.0), co.mean()))


def scale():
    half = first_update(optax.chain(co.scale_examples(0.5), co.mean()))
    assert_close(half, optax.tree.scale(0.5, gradient()))
    with pytest.raises(TypeError, match="a reducer is missing here"):
        first_update(optax.chain(optax.scale(0.5), co.mean()))


def transform():
    clipped = first_update(optax.chain(co.on_rows(optax.clip(1.0)), co.mean()))
    rows = co.materialize(rows_of())
    assert_close(clipped, jax.tree.map(lambda x: x.clip(-1, 1).mean(0), rows))
    with pytest.raises(TypeError, match="a reducer is missing here"):
        first_update(optax.chain(optax.clip(1.0), co.mean()))


def clip_the_update():
    tx = optax.chain(co.mean(), optax.clip_by_global_norm(1.0))
    np.testing.assert_allclose(optax.tree.norm(first_update(tx)), 1, rtol=1e-5)


def no_step_without_consensus():
    tx = optax.chain(co.sign_consensus(), co.skip_if_empty(optax.adamw(1e-3)))
    rows = co.materialize(rows_of())
    opposed = jax.tree.map(lambda x: jnp.concatenate([x, -x]), rows)
    assert not optax.tree.norm(first_update(tx, opposed))
    around = co.skip_if_empty(optax.chain(co.mean(), optax.adamw(1e-3)))
    with pytest.raises(ValueError, match="reducer missing"):
        first_update(around)


def different_rules():
    sgd = lambda reducer: optax.chain(reducer, optax.sgd(1.0))
    labels = {"a": "mean", "b": "median"}
    named = ({"mean": sgd(co.mean()), "median": sgd(co.median())},)
    updates = first_update(optax.partition(*named, labels))
    by_path = lambda tree: jax.tree.map_with_path(lambda p, _: labels[p[0].key], tree)
    for given in (labels, by_path):
        assert_close(updates, first_update(co.partition(*named, given)))
    assert has_parameter_shapes(updates)
    np.testing.assert_allclose(updates["a"], -gradient()["a"], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="pytree structure error"):
        first_update(optax.partition(*named, by_path))
    only = optax.masked(co.mean(), {"a": True, "b": False})
    assert first_update(only)["b"].shape == (4, 12)
    with pytest.raises(ValueError, match=r"`\['b'\]` is \(4, 12\).*reducer missing"):
        first_update(optax.chain(only, co.guard()))


def freeze():
    train = optax.chain(co.mean(), optax.sgd(1.0))
    updates = first_update(co.freeze(train, {"a": False, "b": True}))
    assert_close(updates, {"a": -gradient()["a"], "b": jnp.zeros(12)})
    theirs = optax.partition({0: train, 1: optax.set_to_zero()}, {"a": 0, "b": 1})
    for wrong in (theirs, optax.freeze({"a": False, "b": True})):
        updates = first_update(wrong)
        assert updates["b"].shape == (4, 12)
        with pytest.raises(ValueError, match=r"`\['b'\]` is \(4, 12\).*reducer missin"):
            first_update(optax.chain(theirs, co.guard()))


def train_a_head():
    train = optax.chain(co.mean(), optax.adamw(1e-3, weight_decay=0.1))
    updates = first_update(co.freeze(train, {"a": True, "b": False}))
    assert not jnp.any(updates["a"])
    assert jnp.all(updates["b"] != 0)
    stopped = lambda p, x: loss(p | {"a": jax.lax.stop_gradient(p["a"])}, x)
    rows = co.per_example_grad(stopped)(PARAMS, BATCH)
    assert jnp.all(first_update(train, rows)["a"] != 0)  # it decays


def train_adapters():
    base, tx = PARAMS["a"], optax.chain(co.mean(), optax.sgd(1.0))
    adapters = {"down": jnp.ones((16, 2)), "up": jnp.full((2, 12), 0.1)}

    def apart(adapters, base, x):
        return loss({"a": base + adapters["down"] @ adapters["up"], "b": 0.0}, x)

    rows = co.per_example_grad(apart, batch_argnums=2)(adapters, base, BATCH)
    updates, _ = tx.update(rows, tx.init(adapters), adapters)
    wanted = optax.tree.scale(-1.0, jax.grad(apart)(adapters, base, BATCH))
    assert_close(updates, wanted)
    both = {"base": base, "lora": adapters}
    rows = co.per_example_grad(lambda p, x: apart(p["lora"], p["base"], x))(both, BATCH)
    frozen = co.freeze(tx, {"base": True, "lora": False})
    updates, _ = frozen.update(rows, frozen.init(both), both)
    assert_close(updates, {"base": jnp.zeros((16, 12)), "lora": wanted})
    masked = optax.masked(tx, {"base": False, "lora": True})
    updates, _ = masked.update(rows, masked.init(both), both)
    assert updates["base"].shape == (4, 16, 12)
    told = optax.chain(masked, co.guard())
    with pytest.raises(ValueError, match=r"`\['base'\]` is .*reducer missing"):
        told.update(rows, told.init(both), both)


def be_told():
    tx = optax.chain(co.mean(), optax.adam(1e-3), co.guard())
    assert has_parameter_shapes(first_update(tx))
    with pytest.raises(ValueError, match="OuterProduct"):
        first_update(optax.adam(1e-3))
    arrays = co.materialize(rows_of())
    silent = optax.apply_updates(PARAMS, first_update(optax.adam(1e-3), arrays))
    assert silent["b"].shape == (4, 12)
    with pytest.raises(ValueError, match="reducer missing"):
        first_update(optax.chain(optax.adam(1e-3), co.guard()), arrays)


def accumulate():
    tx = optax.chain(co.accumulate(co.median(), 2), co.skip_if_empty(optax.sgd(1.0)))
    rows = co.materialize(rows_of())
    parts = [jax.tree.map(lambda x, i=i: x[i : i + 2], rows) for i in (0, 2)]
    step = jax.jit(tx.update)
    first, state = step(parts[0], tx.init(PARAMS), PARAMS)
    assert not optax.tree.norm(first)
    second, _ = step(parts[1], state, PARAMS)
    assert_close(second, jax.tree.map(lambda x: -jnp.median(x, 0), rows))
    averaged = optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
    other = optax.chain(co.median(), averaged)
    step = jax.jit(other.update)
    _, state = step(parts[0], other.init(PARAMS), PARAMS)
    update, _ = step(parts[1], state, PARAMS)
    assert jnp.abs(update["a"] - second["a"]).max() > 0.1


def average_or_skip():
    wait = lambda tx: optax.MultiSteps(tx, 2).gradient_transformation()
    tx = optax.chain(co.mean(), wait(optax.sgd(1.0)))
    _, state = tx.update(rows_of(), tx.init(PARAMS), PARAMS)
    second, _ = tx.update(rows_of(), state, PARAMS)
    assert_close(second, optax.tree.scale(-1.0, gradient()))
    skip = lambda tx: optax.apply_if_finite(tx, 2)
    assert_close(
        first_update(optax.chain(co.mean(), skip(optax.sgd(1.0)))),
        optax.tree.scale(-1.0, gradient()),
    )
    for rows in (rows_of(), co.materialize(rows_of())):
        for around in (wait, skip):
            with pytest.raises((TypeError, ValueError)):
                first_update(around(optax.chain(co.mean(), optax.sgd(1.0))), rows)


def thresholds():
    schedule = optax.linear_schedule(1.0, 0.9, 1000)
    scheduled = first_update(co.cosine_filter(schedule))
    injected = first_update(optax.inject_hyperparams(co.cosine_filter)(schedule))
    assert_close(scheduled, injected)
    counted = optax.inject_hyperparams(co.subspace_weighting)(momentum=0.5, num_rows=4)
    with pytest.raises(ValueError, match="'num_rows' in `static_args`"):
        jax.jit(lambda: first_update(counted))()


def groups():
    pairs = rows_of(group_size=2)
    assert pairs["b"].shape[0] == 2
    assert_close(first_update(co.mean(), pairs), gradient())
    few = co.value_and_reduced_grad(loss, co.median(), microbatch_size=2)
    state = co.median().init(PARAMS)
    (_, update, _) = few(PARAMS, BATCH, state=state)
    assert_close(update, first_update(co.median()))


def a_few_rows():
    few, all_apart = rows_of(num_rows=2), rows_of()
    ratio = lambda rows: sum(
        int((x != 0).sum())
        for x in jax.tree.leaves(first_update(co.sign_consensus(), rows))
    )
    assert few["b"].shape[0] == 2
    assert ratio(few) > ratio(all_apart)


def padded():
    mask = jnp.array([1.0, 1.0, 0.0, 0.0])
    rows = co.materialize(rows_of())
    ours = first_update(co.mean(), weights=mask)
    assert_close(ours, first_update(co.mean(), {k: x[:2] for k, x in rows.items()}))
    zeros = {k: x.at[2:].set(0) for k, x in rows.items()}
    halved = first_update(co.mean(), zeros)
    assert_close(optax.tree.scale(2.0, halved), ours)


def random_keys():
    noisy = lambda params, x, key: (
        loss(params, x) + (params["b"] @ jax.random.normal(key, (12,)))
    )
    key = jax.random.key(0)
    same = jnp.tile(BATCH[:1], (4, 1))
    rows = co.per_example_grad(noisy, prng_argnum=2)(PARAMS, same, key)["b"]
    assert jnp.unique(rows, axis=0).shape[0] == 4
    rows = co.per_example_grad(noisy)(PARAMS, same, key)["b"]
    np.testing.assert_allclose(
        rows, jnp.tile(rows[:1], (4, 1)), rtol=1e-5
    )  # the same sums


def flax_nnx():
    model = nnx.Linear(16, 12, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model, nnx.Param)
    of = lambda state, x: jnp.mean(nnx.merge(graph, state)(x) ** 2)
    rows = co.per_example_grad(of)(state, BATCH)
    moved = jax.tree.map(lambda p, g: p - g, state, jax.grad(of)(state, BATCH))
    optimizer = optax.chain(co.mean(), optax.sgd(1.0))
    nnx.Optimizer(model, optimizer, wrt=nnx.Param).update(model, rows)
    assert_close(nnx.state(model, nnx.Param), moved)


def flax_linen():
    tx = optax.chain(co.mean(), optax.sgd(1.0))
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    after = state.apply_gradients(grads=rows_of()).params
    assert_close(after, jax.tree.map(lambda p, g: p - g, PARAMS, gradient()))


def clip_then_reduce():
    parts = co.clip_examples(0.1), co.mean()
    step = co.value_and_reduced_grad(loss, co.chain(*parts), microbatch_size=2)
    _, update, _ = step(PARAMS, BATCH, state=co.chain(*parts).init(PARAMS))
    assert_close(update, first_update(optax.chain(*parts)))
    with pytest.raises(ValueError, match=r"`co\.chain` of row transformations"):
        co.value_and_reduced_grad(loss, optax.chain(*parts))
    with pytest.raises(ValueError, match=r"as `co.on_rows` does"):
        co.chain(co.on_rows(optax.clip(1.0)), co.mean())


ORDERS = {
    "clip or normalize each example": clip_or_normalize,
    "scale all rows": scale,
    "transform each row": transform,
    "clip the update": clip_the_update,
    "no step without consensus": no_step_without_consensus,
    "different rules for different parameters": different_rules,
    "freeze parameters": freeze,
    "train a head alone": train_a_head,
    "train adapters alone (LoRA)": train_adapters,
    "be told of rows that nothing reduced": be_told,
    "accumulate rows over steps": accumulate,
    "average, or skip non-finite updates": average_or_skip,
    "thresholds that change": thresholds,
    "clip or look, then reduce, with no rows held": clip_then_reduce,
    "groups as rows": groups,
    "padded batches": padded,
    "a few rows": a_few_rows,
    "random keys per example": random_keys,
    "Flax NNX": flax_nnx,
    "Flax linen": flax_linen,
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_order(order):
    ORDERS[order]()


def test_every_row_of_the_page_is_here():
    table = PAGE.read_text(encoding="utf-8")
    titles = re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)
    assert titles[1:] == list(ORDERS)
