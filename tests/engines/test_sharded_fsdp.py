"""Parameters cut along the rows' own axis (FSDP): updates are those of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from consensus_optax import compressors
from consensus_optax._rows.views import reshaped, transposed
from tests._models import assert_close
from tests.engines.test_sharded_fsdp_bytes import KINDS, MESH, ROWS, N
from tests.zoo.own import heavy_ball

pytestmark = pytest.mark.slow

PLACES = {
    "w": P("data"),
    "v": P(None, "data"),
    "both": P("data", "model"),
    "outside": P(None, ("model", "data")),
    "model": P("model"),
    "inside": P(("data", "model")),  # slabs that no part consists of
    "odd": P(),
    "number": P(),
}
LEAVES = {"w": (8, 6), "v": (6, 8), "both": (4, 2), "outside": (3, 8)} | {
    "model": (4, 6),
    "inside": (8, 2),
    "odd": (3,),
    "number": (),
}
OTHERS = {
    name: KINDS[name] for name in ("fold", "norms", "gramian", "affine", "columns")
} | {
    "remembers": heavy_ball(),
    "toward what it remembers": co.centered_clipping(1.0),
    "mixing": co.after(co.nearest_neighbor_mixing(1), co.median()),
}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(AxisType.Auto, jnp.float32), (AxisType.Explicit, jnp.bfloat16)],
)
def test_updates_stay_and_are_those_of_one_device(kind, dtype):
    """With a row that is not finite and one that is absent; two steps if it matters."""
    mesh = jax.make_mesh(
        (2, 2), ("data", "model"), (kind,) * 2, devices=jax.devices()[:4]
    )
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(1, 1, shape), jnp.float32)
    params = {name: jnp.zeros(shape, dtype) for name, shape in LEAVES.items()}
    rows = {name: draw(8, *shape) for name, shape in LEAVES.items()}
    factors = draw(8, 3, 8).at[5].set(jnp.inf), draw(8, 3, 6)
    rows["w"] = co.OuterProduct(*factors, row_shape=(8, 6))
    product = lambda m, n: co.OuterProduct(draw(8, 2, m), draw(8, 2, n), (m, n))
    rows["v"] = transposed(reshaped(product(8, 6), (2, 4, 6)), (2, 0, 1))
    rows["v"] = reshaped(rows["v"], (6, 8))
    rows |= {name: product(*LEAVES[name]) for name in ("outside", "model")}
    weights = jnp.ones(8).at[2].set(0)

    def steps(rules, params, rows):
        def some(name, rule):
            state, outs = rule.init(params), []
            for _ in range(2 if "remembers" in name else 1):
                update, state = rule.update(rows, state, params, weights=weights)
                outs.append(update)
            return outs, state.consensus_ratio, state.num_nonfinite

        return {name: some(name, rule) for name, rule in rules.items()}

    put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    whole = {name: P() for name in ("w", "both", "inside", "outside")}
    lie = PLACES if kind == AxisType.Auto else {**PLACES, **whole}
    placed = {name: put(x, lie[name]) for name, x in params.items()}
    wrap = lambda rule: co.sharded(rule, "data", mesh=mesh, param_specs=PLACES)
    across = {name: wrap(rule) for name, rule in OTHERS.items()}
    by_row = jax.tree.map(lambda x: put(x, P("data")), rows)
    found = jax.jit(lambda *given: steps(across, *given))(placed, by_row)
    expected = jax.jit(lambda *given: steps(OTHERS, *given))(params, rows)
    # sums of few terms in another order; bfloat16 rounds what is near a tie either way
    tolerance = 1e-5 if dtype == jnp.float32 else 2.0**-7
    for name, (outs, *facts) in found.items():
        for x, y in zip(outs, expected[name][0], strict=True):
            for leaf, array in x.items():
                assert_close(array, y[leaf], tolerance)
                wanted = NamedSharding(mesh, PLACES[leaf])
                assert array.sharding.is_equivalent_to(wanted, array.ndim), (name, leaf)
        assert_close(facts, expected[name][1:], 1e-6)


def test_slabs_that_several_devices_have_are_those_of_one_device():
    """Rows along two axes of which one cuts parameters, or both in another order."""
    mesh = jax.make_mesh(
        (2, 2), ("data", "model"), (AxisType.Auto,) * 2, devices=jax.devices()[:4]
    )
    specs = {
        "slow": P("data"),
        "fast": P(None, "model"),
        "turned": P(("model", "data")),
        "odd": P(),
    }
    shapes = {"slow": (4, 6), "fast": (6, 8), "turned": (8, 2), "odd": (3,)}
    rng = np.random.default_rng(2)
    draw = lambda *shape: jnp.asarray(rng.uniform(1, 2, shape), jnp.float32)
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    rows = {name: draw(8, *shape) for name, shape in shapes.items()}
    product = lambda m, n: co.OuterProduct(draw(8, 2, m), draw(8, 2, n), (m, n))
    rows |= {"fast": product(6, 8), "slow": product(4, 6)}
    names = ("fold", "norms", "gramian", "remembers", "toward what it remembers")

    def steps(wrap, params, rows):
        def some(rule):
            rule, state = wrap(rule), rule.init(params)
            for _ in range(2):
                update, state = rule.update(rows, state, params)
            return update, state.consensus_ratio

        return [some(OTHERS[name]) for name in names]

    put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    placed = {name: put(x, specs[name]) for name, x in params.items()}
    by_row = jax.tree.map(lambda x: put(x, P(("data", "model"))), rows)
    wrap = lambda rule: co.sharded(
        rule, ("data", "model"), mesh=mesh, param_specs=specs
    )
    found = jax.jit(lambda *given: steps(wrap, *given))(placed, by_row)
    expected = jax.jit(lambda *given: steps(lambda rule: rule, *given))(params, rows)
    # sums of few terms in another order
    jax.tree.map(lambda x, y: assert_close(x, y, 1e-5), found, expected)
    for update, _ in found:
        for name, leaf in update.items():
            wanted = NamedSharding(mesh, specs[name])
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), name


@pytest.mark.parametrize(
    "wires",
    [
        {"wire": compressors.stochastic_quantization(8, jax.random.key(0))},
        {"wire": compressors.scaled_sign()},
        {"update_wire": compressors.natural(jax.random.key(1))},
        {"wire_dtype": jnp.bfloat16},
    ],
    ids=("int8", "sign", "update", "bfloat16"),
)
def test_updates_stay_behind_any_wire(wires):
    """Slabs are the pieces that messages are of: cut or whole, the same update."""
    rng, shape = np.random.default_rng(1), (2 * N, 6)
    params = {"w": jnp.zeros(shape), "b": jnp.zeros(5)}
    draw = lambda like: jnp.asarray(rng.normal(1, 1, (ROWS, *like.shape)), jnp.float32)
    rows = jax.tree.map(draw, params)
    for rule in (co.median(), co.normalized_mean(), co.sign_consensus(0.8)):
        found = {}
        for spec in (P("data"), P()):
            specs = {"w": spec, "b": P()}
            across = co.sharded(rule, "data", mesh=MESH, param_specs=specs, **wires)
            update, _ = jax.jit(across.update)(rows, rule.init(params), params)
            assert update["w"].sharding.is_equivalent_to(NamedSharding(MESH, spec), 2)
            found[spec] = update
        # a sum over rows in another order, where it is rounded for the wire
        unit = float(jnp.finfo(wires.get("wire_dtype", jnp.float32)).eps)
        for name, whole in found[P()].items():
            assert_close(found[P("data")][name], whole, 4 * unit)
