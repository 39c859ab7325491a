"""Factored rows as a tree: what moves them is right, what calculates is an error."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from tests._stacks import B, factored

ROWS, PARAMS, _ = factored()
KINDS = ["dense", "layers", "sequence", "table"]
DENSE = co.materialize(ROWS)


def each(function, rows=ROWS):
    """The function on all children of all leaves, as users map."""
    return jax.tree.map(function, rows)


def over_steps(rows):
    """Rows handed on by a scan, and put together by it."""
    return lax.scan(lambda kept, _: (kept, None), rows, None, 2)[0]


def of_two_stacks(rows):
    """What vmap hands in and out of a step of rows."""
    both = each(lambda x: jnp.stack([x[::-1], x]), rows)
    return each(lambda x: x[1], jax.vmap(lambda rows: rows)(both))


def stepwise(rows):
    """Rows stacked one by one, in a scan over the example axis."""
    singles = each(lambda x: x[:, None], rows)
    return each(lambda x: x[:, 0], lax.scan(lambda c, x: (c, x), 0, singles)[1])


MOVES = {
    "first": lambda rows: each(lambda x: x[:4], rows),
    "indices": lambda rows: each(lambda x: x[jnp.array([5, 0, 0])], rows),
    "flags": lambda rows: each(lambda x: x[np.arange(B) % 2 == 0], rows),
    "take": lambda rows: each(lambda x: jnp.take(x, jnp.array([3, 1]), 0), rows),
    "slice": lambda rows: each(lambda x: lax.dynamic_slice_in_dim(x, 2, 3), rows),
    "joined": lambda rows: jax.tree.map(
        lambda x, y: jnp.concatenate([x, y]), rows, rows
    ),
    "reversed": lambda rows: each(lambda x: x[::-1], rows),
    "zeros": lambda rows: each(jnp.zeros_like, rows),
    "jit": jax.jit(lambda rows: rows),
    "checkpoint": jax.jit(jax.checkpoint(lambda rows: rows)),
    "cond": lambda rows: lax.cond(jnp.array(True), lambda: rows, lambda: rows),
    "scan": over_steps,
    "stacked": stepwise,
    "vmap": of_two_stacks,
    "stop_gradient": lax.stop_gradient,
    "barrier": lax.optimization_barrier,
}


def assert_equal(rows, dense):
    jax.tree.map(np.testing.assert_array_equal, co.materialize(rows), dense)


def test_moved_rows_are_those_of_arrays():
    def moved(rows):
        every = {name: move(rows) for name, move in MOVES.items()}
        for leaf in jax.tree.leaves(every, is_leaf=co.is_outer_product):
            assert not co.is_outer_product(leaf) or leaf.is_intact
        return co.materialize(every)

    ours, wanted = jax.jit(moved)(ROWS), jax.jit(moved)(DENSE)
    jax.tree.map(np.testing.assert_array_equal, ours, wanted)


def test_rows_outside_of_programs():
    by_donation = jax.jit(lambda x: x, donate_argnums=0)
    rows = {name: ROWS[name] for name in ("layers", "table")}
    dense = {name: DENSE[name] for name in rows}
    assert_equal(by_donation(each(jnp.copy, rows)), dense)
    assert_equal(pickle.loads(pickle.dumps(each(jnp.copy, rows))), dense)
    assert_equal(jax.device_get(rows), dense)
    shapes = jax.eval_shape(lambda: each(lambda x: x[:4], rows))
    assert all(leaf.is_intact for leaf in shapes.values())
    assert all(each(lambda x: x, shapes)[name].is_intact for name in rows)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_rows_cross_a_mesh(check_vma, kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    spread = NamedSharding(mesh, P("data"))
    rows = jax.device_put({name: ROWS[name] for name in KINDS}, spread)
    factors = {name: (x.left, x.right) for name, x in rows.items()}

    def step(rows, factors):
        again = {
            name: co.OuterProduct(*pair, *_layout(rows[name]))
            for name, pair in factors.items()
        }
        gathered = lax.all_gather(each(lambda x: x[:1], rows), "data", tiled=True)
        return rows, again, each(lambda x: x[1:], gathered)

    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=check_vma
    )
    with jax.set_mesh(mesh):
        same, again, second = jax.jit(mapped)(rows, factors)
    half = B // 2
    for out, picked in ((same, ...), (again, ...), (second, np.array([half, half]))):
        out = jax.device_get(out)
        assert_equal(out, {name: DENSE[name][picked] for name in KINDS})


def _layout(leaf):
    return leaf.row_shape, leaf.steps, leaf.dtype, leaf.precision


def test_rows_whose_parameters_are_sharded_cross_jit():
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    cut = NamedSharding(mesh, P("data", None, "model"))
    with jax.set_mesh(mesh):
        left, right = (jax.device_put(jnp.ones((4, 1, 2)), cut) for _ in range(2))
        leaf = jax.jit(lambda x: x)(co.OuterProduct(left, right, (2, 2)))
    assert leaf.is_intact
    assert leaf.seal.sharding.spec == P("data", None, None)


BREAKS = {
    "one row": lambda x: x[0],
    "one entry": lambda x: x[:, 0],
    "flat": lambda x: x.reshape(x.shape[0], -1),
    "transposed": lambda x: x.T,
    "columns": lambda x: x[..., :2],
    "last axis": lambda x: x[..., None],
    "one axis": lambda x: x.reshape(-1),
    "new axis": lambda x: x[None],
    "other dtype": lambda x: jnp.zeros(x.shape, bool),
}


@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.parametrize("kind", KINDS)
def test_another_shape_is_refused(name, kind):
    try:
        broken = {kind: each(BREAKS[name], ROWS[kind])}
    except (IndexError, ValueError):
        return  # no such axis: JAX said so
    assert not broken[kind].is_intact
    params, reducer = {kind: PARAMS[kind]}, co.mean()
    with pytest.raises(
        ValueError, match=f"factors of leaf `.'{kind}'.*reducer is miss"
    ):
        reducer.update(broken, reducer.init(params), params)
    clip = co.clip_examples(1.0)
    with pytest.raises(
        ValueError, match=f"factors of leaf `.'{kind}'.*reducer is miss"
    ):
        clip.update(broken, clip.init(params))
    with pytest.raises(ValueError, match="a reducer is missing here"):
        broken[kind].materialize()


def test_a_square_kernel_is_not_taken_for_its_transpose():
    """The seal keeps its shape; what is left of the factors does not multiply to it."""
    leaf = co.OuterProduct(jnp.ones((B, 1, 4)), jnp.ones((B, 1, 4)), (4, 4))
    assert not each(lambda x: x.swapaxes(1, 2), leaf).is_intact


@pytest.mark.slow
def test_steps_of_many_models_at_once():
    """Under vmap a leaf has its example axis first, and outside its models'."""
    loss = lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2)
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    weights, batches, reducer = draw(2, 8, 7), draw(2, B, 8), co.sign_consensus()

    def reduced(rows, w):
        return reducer.update(rows, reducer.init(w), w)[0]

    every = jax.jit(jax.vmap(co.per_example_grad(loss)))(weights, batches)
    assert every.seal.shape == (2, B, 8, 7)
    updates = jax.jit(jax.vmap(reduced))(every, weights)
    for model in range(2):
        rows = co.per_example_grad(loss)(weights[model], batches[model])
        wanted = reduced(rows, weights[model])
        np.testing.assert_allclose(updates[model], wanted, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="a reducer is missing here"):
        reduced(every, weights[0])


def test_maps_that_stop_at_a_leaf_find_no_arithmetic():
    leaf, array = ROWS["layers"], np.ones(3)
    refused = [
        *(lambda: leaf * 0.5, lambda: 0.5 * leaf, lambda: leaf + array, lambda: -leaf),
        *(lambda: array + leaf, lambda: jnp.ones(3) - leaf, lambda: leaf @ leaf),
        *(lambda: jnp.add(leaf, 1.0), lambda: jnp.mean(leaf), lambda: np.asarray(leaf)),
        *(lambda: leaf[0], lambda: leaf[:, 0], lambda: list(leaf), lambda: leaf**2),
    ]
    for operation in refused:
        with pytest.raises(TypeError, match="a reducer is missing here"):
            operation()
    with pytest.raises(AttributeError, match=r"no `mean`.*a reducer is missing here"):
        leaf.mean(0)
    assert_equal(leaf[1:3], DENSE["layers"][1:3])
    assert_equal(leaf[jnp.array([4])], DENSE["layers"][4:5])


def test_a_seal_costs_nothing():
    """The same program, argument for argument and byte for byte, as of the factors."""
    a, d = jnp.ones((B, 1, 64)), jnp.ones((B, 1, 32))
    params, reducer = jnp.zeros((64, 32)), co.mean()

    def step(rows):
        return reducer.update(rows, reducer.init(params), params)[0], rows

    def of_factors(a, d):
        update, rows = step(co.OuterProduct(a, d, (64, 32)))
        return update, rows.left, rows.right

    sealed = jax.jit(step).lower(co.OuterProduct(a, d, (64, 32))).compile()
    bare = jax.jit(of_factors).lower(a, d).compile()
    assert sealed.cost_analysis()["flops"] == bare.cost_analysis()["flops"]
    for size in ("argument", "temp"):
        name = f"{size}_size_in_bytes"
        ours, theirs = (getattr(x.memory_analysis(), name) for x in (sealed, bare))
        assert ours == theirs
    assert jax.tree.leaves(co.OuterProduct(a, d, (64, 32)))[2].nbytes == 0
