"""Rows as they arrive: each by itself, with draws of its own, broken ones broken."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from consensus_optax import compressors
from tests._selected import cases, in_ci

KEY = jax.random.key(0)
RANDOM = {
    "random_k": compressors.random_k(0.4, KEY),
    "int4": compressors.stochastic_quantization(4, KEY),
    "natural": compressors.natural(KEY),
    "low_rank": compressors.low_rank(1, KEY),
}
CODES = {
    **RANDOM,
    "top_k": compressors.top_k(0.4),
    "sign": compressors.scaled_sign(),
    "pieces": compressors.bucketed(RANDOM["int4"], count=3),
}
PARAMS = {"a": jnp.zeros((4, 5)), "b": jnp.zeros((4, 5)), "n": jnp.zeros((), jnp.int32)}


def rows_of(num_rows, same=False):
    rng = np.random.default_rng(1)
    draw = lambda: jnp.asarray(rng.normal(size=(num_rows, 4, 5)), jnp.float32)
    one = draw()
    one = jnp.broadcast_to(one[:1], one.shape) if same else one
    return {"a": one, "b": one if same else draw(), "n": jnp.zeros(num_rows, jnp.int32)}


def arrays(tree):
    return {name: np.asarray(leaf) for name, leaf in co.materialize(tree).items()}


@in_ci
@pytest.mark.parametrize("name", CODES)
def test_a_row_is_what_decompressing_its_message_gives(name):
    code, rows = CODES[name], rows_of(3)
    rule = co.compressed(code)
    found, state = rule.update(rows, rule.init(PARAMS), PARAMS)
    assert int(state.step) == 1
    found = arrays(found)
    for number, leaf in enumerate("ab"):
        for row in range(3):
            key = code.key
            for fold in (0, row, number):  # step, row, leaf
                key = None if key is None else jax.random.fold_in(key, fold)
            message = code.compress(rows[leaf][row], key)
            wanted = code.decompress(message, (4, 5), key)
            np.testing.assert_allclose(found[leaf][row], wanted, rtol=1e-5, atol=1e-6)
    assert found["n"].dtype == np.int32


@in_ci
@pytest.mark.parametrize("name", RANDOM)
def test_no_two_messages_have_the_same_draws(name):
    """Of rows, leaves and steps that all hold the same."""
    rule, rows = co.compressed(RANDOM[name]), rows_of(3, same=True)
    state, seen = rule.init(PARAMS), set()
    for _ in range(2):
        found, state = rule.update(rows, state, PARAMS)
        leaves = arrays(found)
        seen |= {leaves[leaf][row].tobytes() for leaf in "ab" for row in range(3)}
    assert len(seen) == 2 * 2 * 3


@in_ci
@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("check_vma", [True, False])
def test_devices_draw_as_one_device_does(name, check_vma):
    rule = co.compressed(RANDOM[name], axis_name="data")
    rows = {k: x for k, x in rows_of(8, same=True).items() if k != "n"}
    params = {k: x for k, x in PARAMS.items() if k != "n"}
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    each = lambda rows: co.materialize(rule.update(rows, rule.init(params), params)[0])
    spread = jax.shard_map(
        each, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=check_vma
    )
    found, wanted = arrays(jax.jit(spread)(rows)), arrays(each(rows))
    for leaf in "ab":
        np.testing.assert_allclose(found[leaf], wanted[leaf], rtol=1e-5, atol=1e-6)
        assert len({row.tobytes() for row in found[leaf]}) == 8


@in_ci
def test_clients_draw_by_their_number_wherever_they_are():
    """Of all devices: no two alike, and each as on one device."""
    rule = co.compressed(RANDOM["random_k"], axis_name="data")
    rows, params = jnp.ones((8, 16)), jnp.zeros(16)
    clients = jnp.array([0, 1, 2, 9, 5, 6, 7, 8])
    run = lambda rows, clients: rule.update(
        rows, rule.init(params), params, clients=clients
    )[0]
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (P("data"), P("data")), "out_specs": P("data")}
    found = jax.jit(jax.shard_map(run, mesh=mesh, **specs))(rows, clients)
    np.testing.assert_array_equal(found, run(rows, clients))
    assert len({row.tobytes() for row in np.asarray(found)}) == 8


def test_inside_shard_map_the_axis_is_asked_for():
    rule, params = co.compressed(RANDOM["int4"]), jnp.zeros(3)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    each = lambda rows: rule.update(rows, rule.init(params), params)[0]
    spread = jax.shard_map(each, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    with pytest.raises(ValueError, match=r"`axis_name` must name the mesh axes.*None"):
        jax.jit(spread)(jnp.ones((2, 3)))


@pytest.mark.parametrize("name", cases(CODES, "top_k"))
def test_broken_rows_are_counted_out_and_others_do_not_change(name):
    rule = optax.chain(co.compressed(CODES[name]), co.median())
    rows = rows_of(5)
    broken = {**rows, "b": rows["b"].at[1, 2, 3].set(jnp.nan).at[3, 0, 0].set(-jnp.inf)}
    run = jax.jit(
        lambda rows, w: rule.update(rows, rule.init(PARAMS), PARAMS, weights=w)
    )
    got, state = run(broken, jnp.ones(5))
    assert int(optax.tree.get(state, "num_nonfinite")) == 2
    wanted, _ = run(rows, jnp.array([1.0, 0.0, 1.0, 0.0, 1.0]))
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


@in_ci
@pytest.mark.parametrize("name", CODES)
def test_bfloat16_rows(name):
    params = jnp.zeros((4, 5), jnp.bfloat16)
    rule = optax.chain(co.compressed(CODES[name]), co.mean())
    rows = rows_of(3)["a"].astype(jnp.bfloat16)
    got, _ = rule.update(rows, rule.init(params), params)
    assert got.dtype == jnp.bfloat16
    wide, _ = rule.update(
        rows.astype(jnp.float32), rule.init(params), jnp.zeros((4, 5))
    )
    # what is sent is the same; the update is rounded once
    np.testing.assert_allclose(got.astype(jnp.float32), wide, rtol=2.0**-8)


@in_ci
def test_a_finite_row_that_overflows_on_its_way_is_counted_out():
    with jax.enable_x64(True):
        rule = optax.chain(co.compressed(compressors.scaled_sign()), co.mean())
        rows, params = jnp.array([[1e300], [2.0]]), jnp.zeros(1)
        got, state = rule.update(rows, rule.init(params), params)
        assert got.tolist() == [2.0]
        assert int(optax.tree.get(state, "num_nonfinite")) == 1
