"""Outside of `shard_map`, and parameters sharded along an axis of their own."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from benchmarks._traffic import collectives
from tests.engines.test_sharded import CHAINS, KINDS, assert_same, mesh_of

pytestmark = pytest.mark.slow

PARAMS = {"w": jnp.zeros((4, 6)), "b": jnp.zeros(3)}
SPECS = {"w": P(None, "model"), "b": P()}
NUM_ROWS = 8


def given():
    rng = np.random.default_rng(5)
    draw = lambda p: jnp.asarray(rng.normal(1, 1, (NUM_ROWS, *p.shape)), jnp.float32)
    rows = jax.tree.map(draw, PARAMS)
    rows["w"] = rows["w"].at[2, 1, 5].set(jnp.nan)  # in one part of one row
    return rows, jnp.arange(1.0, NUM_ROWS + 1)


def wanted(reducer):
    rows, weights = given()
    extra = {"weights": weights, "values": weights}
    state = reducer.init(PARAMS)
    return jax.jit(lambda r, e: reducer.update(r, state, PARAMS, **e))(rows, extra)


def put(tree, specs, mesh):
    place = lambda spec, x: jax.device_put(x, NamedSharding(mesh, spec))
    return jax.tree.map(place, specs, tree)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, *CHAINS])
def test_parameters_cut_along_another_axis(kind, check_vma):
    if not check_vma and kind not in ("random", "memory", "combination"):
        return  # the others run the same code
    reducer = {**KINDS, **CHAINS}[kind]()
    mesh = mesh_of(2, 2, names=("data", "model"))
    across = co.sharded(reducer, "data", param_specs=SPECS)
    state = reducer.init(PARAMS)
    of_state = optax.tree.map_params(
        reducer,
        lambda _, spec: spec,
        state,
        SPECS,
        transform_non_params=lambda _: P(),
    )
    of_rows = {"w": P("data", None, "model"), "b": P("data")}

    def step(rows, state, params, weights):
        extra = {"weights": weights, "values": weights}
        return across.update(rows, state, params, **extra)

    run = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(of_rows, of_state, SPECS, P("data")),
        out_specs=(SPECS, of_state),
        check_vma=check_vma,
    )
    rows, weights = given()
    assert_same(jax.jit(run)(rows, state, PARAMS, weights), wanted(reducer))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("specs", [None, SPECS, {"w": P("data"), "b": P()}], ids=str)
@pytest.mark.parametrize("context", [False, True], ids=["mesh", "set_mesh"])
def test_under_jit_the_update_lies_where_the_parameters_do(kind, specs, context):
    mesh = mesh_of(2, 2, names=("data", "model"), kind=kind)
    reducer = KINDS["memory" if context else "losses"]()
    across = co.sharded(
        reducer, "data", mesh=None if context else mesh, param_specs=specs
    )
    rows, weights = given()
    rows = put(rows, {"w": P("data"), "b": P("data")}, mesh)
    params = put(PARAMS, specs or {"w": P(), "b": P()}, mesh)
    state = reducer.init(PARAMS)

    def step(rows, state, params, weights):
        extra = {"weights": weights, "values": weights}
        return across.update(rows, state, params, **extra)

    with jax.set_mesh(mesh) if context else contextlib.nullcontext():
        update, new = jax.jit(step)(rows, state, params, weights)
    assert_same((update, new), wanted(reducer))
    for name, leaf in update.items():
        given_spec = params[name].sharding
        assert leaf.sharding.is_equivalent_to(given_spec, leaf.ndim), name


def test_explicit_axes_say_how_parameters_lie():
    mesh = mesh_of(2, 2, names=("data", "model"), kind=AxisType.Explicit)
    reducer = co.krum(1)
    across = co.sharded(reducer, "data", mesh=mesh)
    rows, weights = given()
    params = put(PARAMS, SPECS, mesh)
    step = lambda rows, params, weights: across.update(
        rows, reducer.init(params), params, weights=weights, values=weights
    )
    update, state = jax.jit(step)(rows, params, weights)
    assert_same((update, state), wanted(reducer))
    assert update["w"].sharding.spec == P(None, "model")


@pytest.mark.parametrize(
    ("reducer", "num_rows", "dtype", "itemsize"),
    [
        (co.krum(1), 8, jnp.float32, 4),
        (co.sign_vote(), 8, jnp.float32, 1),
        (co.mean(), 16, jnp.bfloat16, 2),
    ],
    ids=["rows", "signs", "combinations of narrow rows"],
)
def test_one_all_to_all_and_no_gathered_stack_under_jit(
    reducer, num_rows, dtype, itemsize
):
    """However many leaves there are; signs take a byte, there and back."""
    sizes, mesh = (4096, 40, 24), mesh_of(8)
    across = co.sharded(reducer, "data", mesh=mesh)
    params = [jnp.zeros(size, dtype) for size in sizes]
    step = lambda rows: across.update(rows, reducer.init(params), params)[0]
    spread = NamedSharding(mesh, P("data"))
    rows = [jax.ShapeDtypeStruct((num_rows, size), dtype) for size in sizes]
    hlo = jax.jit(step, in_shardings=spread).lower(rows).compile().as_text()
    sent, large = list(collectives(hlo)), itemsize * sum(sizes)
    assert [size for kind, size in sent if kind == "all-to-all"] == [large]
    assert [size for kind, size in sent if kind == "all-gather" and size > 128] == [
        large
    ]
    # all-reduces of a Gramian, of what is said of rows and of the update
    assert all(size <= 4 * 8 * 8 for kind, size in sent if kind == "all-reduce")
    assert len(sent) <= 6


def test_eager_calls_and_outer_products():
    mesh = mesh_of(2)
    reducer = co.cosine_filter(0.2)
    across = co.sharded(reducer, "data", mesh=mesh)
    left, right = jnp.ones((2, 1, 3)), jnp.array([[[1.0, 2.0]], [[3.0, 4.0]]])
    rows = co.OuterProduct(left, right, (3, 2))
    params = jnp.zeros((3, 2))
    got = across.update(rows, reducer.init(params), params)
    assert_same(got, reducer.update(rows, reducer.init(params), params))
    # one program for the devices, not one for each operation inside of `shard_map`
    step = lambda rows: across.update(rows, reducer.init(params), params)
    outermost = [eqn.primitive.name for eqn in jax.make_jaxpr(step)(rows).eqns]
    assert "shard_map" not in outermost


def test_products_outside_travel_as_factors_where_their_parameter_is_whole():
    """Those of a parameter that is cut too, by parts of a factor, and as right."""
    mesh, reducer = mesh_of(2, 2, names=("data", "model")), co.median()
    specs = {"cut": P(None, "model"), "whole": P()}
    params = {"cut": jnp.zeros((8, 22)), "whole": jnp.zeros((64, 64))}
    across = co.sharded(reducer, "data", mesh=mesh, param_specs=specs)
    random = np.random.default_rng(6)
    draw = lambda n: jnp.asarray(random.normal(size=(4, 1, n)), jnp.float32)
    rows = {
        name: co.OuterProduct(*map(draw, leaf.shape), leaf.shape)
        for name, leaf in params.items()
    }
    step = lambda rule: jax.jit(
        lambda rows: rule.update(rows, rule.init(params), params)
    )
    assert_same(step(across)(rows), step(reducer)(rows))
    sent = collectives(step(across).lower(rows).compile().as_text())
    dealt = sum(size for kind, size in sent if kind == "all-to-all")
    assert 0 < dealt < params["whole"].nbytes  # of one row, multiplied out


@pytest.mark.parametrize("kind", ["fold", "combination"])
def test_what_several_devices_hold_is_counted_once(kind):
    """On four that share one parameter, of which another is whole on each."""
    mesh, reducer = mesh_of(2, 4, names=("data", "model")), KINDS[kind]()
    specs = {"w": P(None, "model"), "b": P()}
    params = {"w": jnp.zeros((2, 8)), "b": jnp.zeros(9)}
    across = co.sharded(reducer, "data", mesh=mesh, param_specs=specs)
    random = np.random.default_rng(8)
    draw = lambda p: jnp.asarray(random.normal(1, 1, (4, *p.shape)), jnp.float32)
    rows = jax.tree.map(draw, params)
    step = lambda rule: jax.jit(
        lambda rows: rule.update(rows, rule.init(params), params)
    )
    assert_same(step(across)(rows), step(reducer)(rows))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize(
    "reducer", [co.scale_by_example_moments(), co.centered_clipping(1.0)], ids=repr
)
def test_what_is_kept_lies_where_the_parameters_do(kind, reducer):
    """From the start, and along the rows' own axis as well (FSDP)."""
    mesh = mesh_of(2, 2, names=("data", "model"), kind=kind)
    specs = {"w": P("data", "model"), "b": P()}
    across = co.sharded(reducer, "data", mesh=mesh, param_specs=specs)
    rows = put(given()[0], {"w": P("data"), "b": P("data")}, mesh)
    params = put(PARAMS, specs, mesh)
    before = across.init(params)
    step = jax.jit(across.update)
    _, after = step(rows, before, params)
    for state in (before, after):
        like = [x for x in jax.tree.leaves(state.rule_state) if x.ndim]
        assert len(like) % 2 == 0  # an array like each parameter, or two
        for kept, (name, param) in zip(like, sorted(params.items()) * 2, strict=False):
            assert kept.sharding.is_equivalent_to(param.sharding, kept.ndim), name
    again = step(rows, after, params)
    plain = jax.jit(reducer.update)
    _, after = plain(given()[0], reducer.init(PARAMS), PARAMS)
    assert_same(again, plain(given()[0], after, PARAMS))
