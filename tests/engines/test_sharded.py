"""Every reducer of the zoo on a mesh: the same as on the rows of all devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from tests._laws import close
from tests._stacks import P as NUM_PARAMS
from tests._stacks import factored, matrix, params, tree
from tests.zoo import KINDS as ROW_KINDS
from tests.zoo import ZOO
from tests.zoo.own import heavy_ball


def mesh_of(*shape, names=("data",), kind=AxisType.Auto):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape), devices=devices)


def stack(num_rows):
    """Rows that agree on many signs; of more than four, three cannot count."""
    random = np.random.default_rng(num_rows)
    base = random.normal(size=NUM_PARAMS)
    base[-1] = 2
    rows = (base + 0.6 * random.normal(size=(num_rows, NUM_PARAMS))).astype(np.float32)
    weights = np.ones(num_rows, np.float32)
    if num_rows > 4:
        rows[1, 3], rows[num_rows - 1, NUM_PARAMS - 1] = np.nan, np.inf
        weights[2] = 0
        rows[2, 0] = np.nan
    return rows, weights


def params_of(rows):
    zeros = lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype)
    return jax.tree.map(zeros, rows, is_leaf=co.is_outer_product)


def on_mesh(reducer, mesh, rows, weights, check_vma=True, **options):
    """Update and state from `sharded` inside of `shard_map`, the first step."""
    parameters = params_of(rows)
    across = co.sharded(reducer, mesh.axis_names, **options)

    def step(rows, weights):
        state = reducer.init(parameters)
        values = weights + 1  # for rules that read losses
        extra = {"weights": weights, "values": values}
        return across.update(rows, state, parameters, **extra)

    specs = (P(mesh.axis_names),) * 2
    run = jax.shard_map(
        step, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma
    )
    return jax.jit(run)(rows, weights)


def in_memory(reducer, rows, weights):
    parameters = params_of(rows)
    extra = {"weights": weights, "values": weights + 1}
    step = lambda rows, extra: reducer.update(
        rows, reducer.init(parameters), parameters, **extra
    )
    return jax.jit(step)(rows, extra)


def check(row, num_devices, rows_each, check_vma):
    """As in memory, where the laws hold and the published loops give the same."""
    rows, weights = stack(num_devices * rows_each)
    reducer = row.make(num_rows=len(rows))
    mesh = mesh_of(num_devices)
    update, state = on_mesh(reducer, mesh, tree(rows), weights, check_vma)
    wanted, known = in_memory(reducer, tree(rows), jnp.asarray(weights))
    close(matrix(update)[None], matrix(wanted)[None], row.rtol, names=["first step"])
    absent = 3 if len(rows) > 4 else 0
    assert state.num_present == known.num_present == len(rows) - absent
    assert state.num_nonfinite == known.num_nonfinite == (2 if absent else 0)
    assert state.consensus_ready == known.consensus_ready
    assert (
        known.consensus_ready or len(rows) < 3
    )  # filters need two rows, clusters three


DEVICES = (1, 2, 4, 8)


def cases():
    """The zoo on numbers of devices, and with one row or four of each, by turns.

    A row of each kind on all numbers. Few now, where the law of sources has every kind.
    """
    for place, row in enumerate(ZOO):
        meshes = [(x, (1, 4)[(place + i) % 2]) for i, x in enumerate(DEVICES)]
        meshes = meshes if row in ROW_KINDS else meshes[place // 2 % 2 :: 2]
        meshes = [mesh for mesh in meshes if np.prod(mesh) >= row.least_rows]
        now = None
        if row in ROW_KINDS[::6]:
            now = meshes[ROW_KINDS.index(row) % len(meshes)]
        for mesh in meshes:
            marks = () if mesh == now else pytest.mark.whole_zoo
            name = f"{row} on {mesh[0]}x{mesh[1]}"
            yield pytest.param(row, *mesh, marks=marks, id=name)


@pytest.mark.parametrize(("row", "num_devices", "rows_each"), [*cases()])
def test_equals_the_reducer_in_memory(row, num_devices, rows_each):
    """With ``check_vma`` where a device has one row."""
    check(row, num_devices, rows_each, check_vma=rows_each == 1)


KINDS = {
    "fold": lambda: co.sign_consensus(rescale=True),
    "fold of leaves": co.sand_mask,
    "random": lambda: co.graddrop(0.25, jax.random.key(0)),
    "combination": co.normalized_mean,
    "losses": lambda: co.among(co.keep_smallest_losses(3), co.sign_vote()),
    "gramian": lambda: co.cosine_filter(0.6),
    "affine": lambda: co.krum(1),
    "by leaf": lambda: co.per_leaf(co.subspace_weighting()),
    "columns": co.median,
    "memory": heavy_ball,
    "mixing": lambda: co.after(co.nearest_neighbor_mixing(1), co.median()),
    "moments": co.scale_by_example_moments,
}
CHAINS = {
    "chain": lambda: co.chain(
        co.clip_examples(2.0), co.probe(reads="norms"), co.scale_by_example_moments()
    ),
    "chain of pairs": lambda: co.chain(co.probe(), co.cosine_filter(0.6)),
}


def assert_same(got, wanted, rtol=2e-6):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        scale = np.abs(y).max(initial=1e-30)
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * scale)


in_ci = lambda names: [pytest.param(x, marks=pytest.mark.whole_zoo) for x in names]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, *in_ci(CHAINS)])
def test_two_mesh_axes_and_the_state(kind):
    """The first axis is the slowest; state and update are those of one device."""
    rows, weights = stack(8)
    rows, weights = tree(rows), jnp.asarray(weights)
    mesh = mesh_of(2, 2, names=("replica", "data"))
    reducer = {**KINDS, **CHAINS}[kind]()
    got = on_mesh(reducer, mesh, rows, weights)
    assert_same(got, in_memory(reducer, rows, weights))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fold", "combination", "gramian", "columns"])
def test_factored_rows(kind):
    rows, _, _ = factored()
    weights = jnp.ones(6)
    reducer = {"columns": co.median, "fold": lambda: co.sign_consensus(0.6)}.get(
        kind, KINDS[kind]
    )()
    got = on_mesh(reducer, mesh_of(2), rows, weights, check_vma=True)
    wanted = in_memory(reducer, rows, weights)
    assert_same(got, wanted, rtol=1e-2)  # one leaf is bfloat16, and its parameter
    assert_same(got[0]["dense"], wanted[0]["dense"], rtol=1e-5)


@pytest.mark.slow
def test_a_device_without_rows_and_nobody_at_all():
    rows, weights = stack(8)
    rows[:4] = np.nan
    for reducer in (co.sign_consensus(0.6), co.median(), co.mean()):
        got = on_mesh(reducer, mesh_of(2), tree(rows), weights)
        assert_same(got, in_memory(reducer, tree(rows), jnp.asarray(weights)))
        assert got[1].consensus_ready
        update, state = on_mesh(reducer, mesh_of(2), tree(rows * np.nan), weights)
        assert not state.consensus_ready
        assert not matrix(update).any()


def stacked(tree):
    """Leaves with an axis for the devices."""
    return jax.tree.map(lambda leaf: leaf[None], tree)


@pytest.mark.slow
def test_all_devices_agree_bit_for_bit():
    """Each device's own result, without a promise that they are the same."""
    rows, weights = stack(8)
    parameters = params()
    for kind, make in KINDS.items():
        reducer = make()
        across = co.sharded(reducer, "data")

        def step(rows, weights, reducer=reducer, across=across):
            state = reducer.init(parameters)
            extra = {"weights": weights, "values": weights}
            out = across.update(rows, state, parameters, **extra)
            return stacked(out)

        run = jax.shard_map(
            step,
            mesh=mesh_of(4),
            in_specs=P("data"),
            out_specs=P("data"),
            check_vma=False,
        )
        for leaf in jax.tree.leaves(jax.jit(run)(tree(rows), weights)):
            leaf = np.asarray(leaf)
            assert all(leaf[0].tobytes() == x.tobytes() for x in leaf), kind


def test_what_is_remembered_is_not_rounded_to_what_travels():
    """Parameters of bfloat16, whose updates travel so; the last one is in float32."""
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(4, 9)), jnp.float32)
    parameters, weights = jnp.zeros(9, jnp.bfloat16), jnp.ones(4)
    across = co.sharded(heavy_ball(), "data")

    def step(rows, weights):
        state = across.init(parameters)
        return across.update(rows, state, parameters, weights=weights)[1]

    run = jax.shard_map(step, mesh=mesh_of(2), in_specs=(P("data"),) * 2, out_specs=P())
    previous = jax.jit(run)(rows, weights).rule_state.previous
    assert previous.dtype == jnp.float32
    np.testing.assert_allclose(previous, rows.mean(0), rtol=1e-6)  # of four numbers


def test_rejects_what_it_cannot_do():
    with pytest.raises(ValueError, match="`wire_dtype` must be a floating dtype"):
        co.sharded(co.median(), "data", wire_dtype=jnp.int8)
    with pytest.raises(ValueError, match="`reducer` must be a reducer"):
        co.sharded(co.sharded(co.median(), "data"), "data")
    rule, parameters = co.sharded(co.median(), "data"), jnp.zeros(2)
    with pytest.raises(ValueError, match="are not there"):
        rule.update(jnp.ones((2, 2)), rule.init(parameters), parameters)
    with pytest.raises(ValueError, match="`param_specs` must not name"):
        on_mesh(
            co.median(),
            mesh_of(2),
            jnp.ones((2, 2)),
            jnp.ones(2),
            param_specs=P("data"),
        )
