"""Parameters cut along the rows' own axis (FSDP): what travels, what is not held."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from benchmarks._traffic import bytes_in_turns
from consensus_optax import compressors
from consensus_optax.engines.mesh.factors import stays_for_less
from tests._models import assert_close
from tests.zoo.own import heavy_ball

pytestmark = pytest.mark.slow

N, ROWS, WIDTH = 4, 16, 64
SHAPES = {"w": (WIDTH, 2 * WIDTH), "v": (2 * WIDTH, WIDTH), "out": (WIDTH, 8)}
SIZE = sum(map(math.prod, SHAPES.values()))
MESH = jax.make_mesh((N,), ("data",), (AxisType.Auto,), devices=jax.devices()[:N])
CUT = NamedSharding(MESH, P("data"))
KINDS = {
    "mean": co.mean(),
    "fold": co.sign_consensus(),
    "quorum": co.sign_consensus(0.8),
    "norms": co.chain(co.clip_examples(1.0), co.mean()),
    "gramian": co.cosine_filter(),
    "affine": co.krum(1),
    "among": co.among(co.cosine_filter(0.6), co.sign_consensus()),
    "columns": co.median(),
}


def loss(p, x):
    hidden = jnp.tanh(jnp.tanh(x @ p["w"]) @ p["v"])
    return jnp.mean((hidden @ p["out"]) ** 2)


def program(reducer):
    face = co.sharded(reducer, "data", mesh=MESH, param_specs=P("data"))
    step = co.value_and_reduced_grad(loss, face, hold_rows=True)
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=CUT)
        for name, shape in SHAPES.items()
    }
    state = reducer.init({name: jnp.zeros(shape) for name, shape in SHAPES.items()})
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=CUT)
    run = jax.jit(lambda p, x: step(p, x, state=state)[1], out_shardings=CUT)
    return run.lower(params, x).compile().as_text()


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_and_no_row_multiplied_out(kind):
    """Parameters are gathered, rows are dealt out, and the update stays where it is.

    A plain step sends gradients instead; factors are less than what they multiply to.
    """
    text = program(KINDS[kind])
    gathered = 4 * SIZE * (N - 1) / N
    pairs = 3 * 2 * 4 * (ROWS + 1) ** 2  # Gramians, of scaled rows and of a bound
    assert bytes_in_turns(text, N) <= 0.65 * 2 * gathered + pairs
    sizes = {
        math.prod(map(int, filter(None, dims.split(","))))
        for dims in re.findall(r"f32\[([\d,]*)\]", text)
    }
    # all rows of the coordinates that a device has; Krum takes rows less one of them
    stack = ROWS * math.prod(SHAPES["w"]) // N
    assert (max(sizes) >= stack) == (kind in ("columns", "affine"))


PLACES = {
    "w": P("data"),  # stays
    "v": P(None, "data"),  # lies otherwise than blocks do
    "both": P("data", "model"),
    "odd": P(),
    "number": P(),
}
LEAVES = {"w": (8, 6), "v": (6, 8), "both": (4, 2), "odd": (3,), "number": ()}
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
    lie = PLACES if kind == AxisType.Auto else {**PLACES, "w": P(), "both": P()}
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


def test_an_update_is_sent_where_rows_would_be_dearer():
    """Of few, long lines each device would get all of the long factor."""
    shape = lambda *sides: jax.ShapeDtypeStruct(sides, jnp.float32)
    leaf = lambda terms, m, n: co.OuterProduct(
        shape(16, terms, m), shape(16, terms, n), (m, n)
    )
    table = jax.ShapeDtypeStruct((16, 3), jnp.int32)
    looked_up = co.OuterProduct(table, shape(16, 3, 8), (64, 8))
    stays = lambda leaf: stays_for_less(leaf, 4, signs=False, axis=0)
    assert stays(shape(16, 64, 128))
    assert stays(leaf(1, 64, 128))
    assert not stays(leaf(1, 8, 8192))
    assert not stays(looked_up)
