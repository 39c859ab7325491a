"""Rows stay factored, and exact, however arrays lie on a mesh."""

import contextlib
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from consensus_optax._rows.views import transposed
from tests import _scanned_models
from tests._models import (
    Model,
    array,
    assert_close,
    bounded,
    cnn,
    mlp,
    square,
    transformer,
)
from tests._recurrent_models import lstm

pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]

AXES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
WAYS = ("jit", "set_mesh", "shard_map", "shard_map unchecked")
# Of every model the axis of its parameters that is cut along the mesh axis of the rows,
# and the one along another, where it leaves no decision to the user on explicit axes.
CUTS = {
    "mlp": {"w": (0, 1), "b": (None, 0), "v": (0, 1)},
    "cnn": {"k": (3, None), "scale": (0, None), "w": (0, 1)},
    "transformer": {"words": (0, None), "qkv": (0, 2), "up": (0, 1), "down": (0, None)},
    "scanned": {"qkv": (1, 3), "up": (2, None), "down": (2, None)},
    "lstm": {"x": (0, 1), "h": (0, 1), "bias": (None, 0), "start": (None, 0)},
}
PLACES = {
    "replicated": (None, None),
    "fsdp": ("data", None),
    "tp": (None, "model"),
    "both": ("data", "model"),
}
# One cell of each kind; CI asks for all others with ``-m whole_zoo``.
IN_SHORT = [
    ("mlp", "jit", "auto", "both"),
    ("cnn", "jit", "explicit", "fsdp"),
    ("transformer", "shard_map", "auto", "replicated"),
    ("transformer", "jit", "explicit", "both"),
    ("scanned", "set_mesh", "explicit", "both"),
    ("lstm", "shard_map", "explicit", "tp"),
    ("lstm", "shard_map unchecked", "auto", "both"),
]
CELLS = [
    pytest.param(*cell, marks=() if cell in IN_SHORT else pytest.mark.whole_zoo)
    for cell in itertools.product(CUTS, WAYS, AXES, PLACES)
]


def mesh_of(axes):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AXES[axes],) * 2)


def model_of(name, mesh=None) -> Model:
    """A model with eight rows; on explicit axes it says where what it looks up lies."""
    place = mesh and NamedSharding(mesh.abstract_mesh, P())
    look_up = lambda table, tokens: table.at[tokens].get(out_sharding=place)
    models = {
        "mlp": mlp,
        "cnn": cnn,
        "transformer": functools.partial(transformer, look_up),
        "scanned": _scanned_models.transformer,
        "lstm": lstm,
    }
    model = models[name]()
    again = model.batch[::-1]
    other = again if again.dtype == jnp.int32 else 1 + again
    return model._replace(batch=jnp.concatenate([model.batch, other]))


@functools.cache
def expected(name):
    """Rows on one device."""
    model = model_of(name)
    one = lambda p, x: jax.grad(model.loss)(p, x[None])
    return jax.jit(jax.vmap(one, (None, 0)))(model.params, model.batch)


def placed(name, model, mesh, place):
    """Parameters and batch where they lie."""

    def spec(key, param):
        cut = dict(zip(CUTS[name].get(key, ()), PLACES[place], strict=False))
        return P(*(cut.get(axis) for axis in range(param.ndim)))

    put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    params = {key: put(x, spec(key, x)) for key, x in model.params.items()}
    return params, put(model.batch, P("data"))


@pytest.mark.parametrize(("name", "way", "axes", "place"), CELLS)
def test_rows_on_a_mesh_are_those_of_one_device(name, way, axes, place):
    mesh = mesh_of(axes)
    asks = axes == "explicit" and way in ("jit", "set_mesh")
    model = model_of(name, mesh if asks else None)
    rows = co.per_example_grad(model.loss)
    both = lambda *args: (rows(*args), co.materialize(rows(*args)))
    if way.startswith("shard_map"):
        both = jax.shard_map(
            both,
            mesh=mesh,
            in_specs=(P(), P("data")),
            out_specs=P("data"),
            axis_names={"data"},
            check_vma=way == "shard_map",
        )
    params, batch = placed(name, model, mesh, place)
    with jax.set_mesh(mesh) if way == "set_mesh" else contextlib.nullcontext():
        given, arrays = jax.jit(both)(params, batch)
    flat, _ = jax.tree_util.tree_flatten_with_path(given, is_leaf=co.is_outer_product)
    assert model.factored == {
        jax.tree_util.keystr(path) for path, leaf in flat if co.is_outer_product(leaf)
    }
    # sums over parts of an axis are in another order; of the scanned transformer the
    # gradients of `qkv` are so small that float32 on one device is 2e-5 off as well
    tolerance = 5e-5 if name == "scanned" and place in ("tp", "both") else 1e-5
    for key, array_ in arrays.items():
        assert_close(array_, expected(name)[key], tolerance)
        if axes == "explicit" or "shard_map" in way:  # else the compiler chooses
            assert array_.sharding.spec[0] == "data"
        if axes == "explicit":  # what is multiplied out lies as its parameter does
            cut = [axis for axis in params[key].sharding.spec if axis == "model"]
            assert [axis for axis in array_.sharding.spec if axis == "model"] == cut


def test_several_axes_of_rows_and_groups():
    mesh = jax.make_mesh((2, 2, 2), ("host", "data", "model"))  # explicit by default
    model = model_of("mlp")
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
    params = {key: put(x, "data") for key, x in model.params.items()}
    batch = put(model.batch, ("host", "data"))
    rows = jax.jit(co.per_example_grad(model.loss))(params, batch)
    groups = jax.jit(co.per_example_grad(model.loss, group_size=2))(params, batch)
    for key, array_ in co.materialize(rows).items():
        assert array_.sharding.spec[0] == ("host", "data")
        assert_close(array_, expected("mlp")[key], 1e-5)  # float32 sums in parts
        pairs = expected("mlp")[key].reshape(4, 2, *array_.shape[1:]).mean(1)
        assert_close(co.materialize(groups)[key], pairs, 1e-5)
    assert co.is_outer_product(rows["w"])
    assert co.is_outer_product(groups["w"])


def test_one_device_of_a_mesh_or_committed():
    model = model_of("mlp")
    for place in (
        jax.devices()[3],
        NamedSharding(jax.make_mesh((1,), ("data",)), P()),
    ):
        given = jax.device_put((model.params, model.batch), place)
        rows = jax.jit(co.per_example_grad(model.loss))(*given)
        assert co.is_outer_product(rows["w"])


def test_constraints_in_the_loss_leave_rows_factored():
    params = {"w": array(0, 16, 32), "v": array(1, 32, 8)}
    batch = array(2, 8, 16)

    def loss(constrain, mesh):
        place = lambda x, *spec: constrain(x, NamedSharding(mesh, P(*spec)))

        def of(p, x):
            x = jnp.tanh(x @ place(p["w"], None, "model"))
            return square(place(x) @ place(p["v"], "model"))

        return of

    plain = loss(lambda x, _: x, mesh_of("auto"))
    one = lambda p, x: jax.grad(plain)(p, x[None])
    wanted = jax.vmap(one, (None, 0))(params, batch)
    for axes, constrain in (
        ("auto", jax.lax.with_sharding_constraint),
        ("explicit", jax.sharding.reshard),
    ):
        mesh = mesh_of(axes)
        put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))  # noqa: B023
        args = jax.tree.map(put, params), put(batch, "data")
        rows = jax.jit(co.per_example_grad(loss(constrain, mesh)))(*args)
        for key, leaf in rows.items():
            assert co.is_outer_product(leaf), (axes, key)
            assert_close(leaf.materialize(), wanted[key], 1e-5)  # sums in parts


def test_a_decision_that_jax_needs_is_explained():
    mesh = mesh_of("explicit")
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
    w, x = put(array(0, 16, 32), "model"), put(array(1, 8, 16), "data", "model")
    with pytest.raises(Exception, match="sharding") as caught:
        jax.jit(co.per_example_grad(lambda w, x: square(x @ w)))(w, x)
    notes = "".join(caught.value.__notes__)
    assert "explicit mesh axes ('data', 'model')" in notes


@pytest.mark.parametrize(
    "constrain", [jax.sharding.reshard, jax.lax.with_sharding_constraint]
)
def test_what_to_write_where_a_loss_names_the_axis_of_rows(constrain):
    mesh = mesh_of("explicit")
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
    w, x = put(array(0, 16, 32)), put(array(1, 8, 16), "data")
    where = lambda spec: NamedSharding(mesh.abstract_mesh, spec)

    def rows(spec):
        loss = lambda w, x: square(jnp.tanh(constrain(x @ w, where(spec))))
        return jax.eval_shape(co.per_example_grad(loss), w, x)

    with pytest.raises((ValueError, AssertionError)) as caught:
        rows(P("data", None))
    notes = "".join(caught.value.__notes__)
    assert "where it says `P('data', None, 'model')`" in notes
    assert "let it say `P(None, None, 'model')`" in notes
    leaf = rows(P(None, None))
    assert co.is_outer_product(leaf)
    assert leaf.right.sharding.spec[0] == "data"


def test_explain_names_what_a_mesh_costs(capsys):
    mesh, model = mesh_of("auto"), model_of("mlp")
    given = placed("mlp", model, mesh, "fsdp")

    def loss(p, x):
        on_mesh = not jax.typeof(x).sharding.mesh.empty
        product = bounded if on_mesh else jnp.matmul
        return square(product(jnp.tanh(x @ p["w"] + p["b"][None]), p["v"]))

    co.explain(loss, *given)
    header, _, lost, kept = capsys.readouterr().out.splitlines()
    assert header == "on this mesh (data: 4, model: 2):"
    assert "array: ends in min; NOT FACTORED ON THIS MESH, without it factored" in lost
    assert kept.startswith("['w']  (16, 32)  factored: 1 x (16 + 32), saves")
    co.explain(model.loss, model.params, model.batch)
    assert "mesh" not in capsys.readouterr().out


def test_no_stack_is_in_the_program_of_rules_that_need_none():
    for axes in AXES:
        mesh, model = mesh_of(axes), model_of("mlp")
        params, batch = placed("mlp", model, mesh, "fsdp")
        rows = co.per_example_grad(model.loss)
        for rule in (co.mean(), co.sign_consensus(), co.cosine_filter()):

            def step(p, x, rule=rule, rows=rows):
                return rule.update(rows(p, x), rule.init(p), p)

            text = jax.jit(step).lower(params, batch).as_text()
            for shape in ("8x16x32xf32", "8x32x16xf32", "8x32x8xf32", "8x8x32xf32"):
                assert shape not in text, (axes, rule, shape)
            assert "8x1x32xf32" in text  # the factors


def test_verbs_of_a_leaf_cut_along_two_axes():
    mesh = mesh_of("explicit")
    draw = lambda seed, *shape: jnp.asarray(
        np.random.default_rng(seed).normal(size=shape), jnp.float32
    )
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
    left, right = draw(0, 8, 3, 6), draw(1, 8, 3, 4)
    plain = transposed(co.OuterProduct(left, right, (6, 4)), (1, 0))
    factors = put(left, "data", None, "model"), put(right, "data")
    cut = transposed(co.OuterProduct(*factors, (6, 4), spec=(None, "model")), (1, 0))
    rows = jax.jit(lambda leaf: leaf.materialize())(cut)
    assert_close(rows, plain.materialize(), 1e-6)  # the same sums
