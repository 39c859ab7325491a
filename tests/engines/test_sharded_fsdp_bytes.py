"""Parameters cut along the rows' own axis (FSDP): what travels, what is not held."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from benchmarks._traffic import bytes_in_turns
from consensus_optax.engines.mesh.factors import stays_for_less
from consensus_optax.engines.mesh.layout import Stay

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


# Axes of the mesh, and how each parameter is cut.
CUTS = {
    "last axis": ((N,), P(None, "data"), P(None, "data"), P(None, "data")),
    "a copy along the other": ((2, 2), P("model"), P(None, "model"), P("model")),
    "another along the other": (
        (2, 2),
        P("data", "model"),
        P("model", "data"),
        P("data"),
    ),
    "another outside": (
        (2, 2),
        P(None, ("model", "data")),
        P(("model", "data")),
        P("data"),
    ),
}


@pytest.mark.whole_zoo
@pytest.mark.parametrize("kind", ["fold", "norms", "gramian"])
@pytest.mark.parametrize("cut", CUTS)
def test_bytes_of_parameters_cut_in_other_ways(cut, kind):
    """No more than the plain step, which sums gradients by reduce-scatter."""
    sides, *specs = CUTS[cut]
    mesh = jax.make_mesh(
        sides,
        ("data", "model")[: len(sides)],
        (AxisType.Auto,) * len(sides),
        devices=jax.devices()[:N],
    )
    specs = dict(zip(SHAPES, specs, strict=True))
    lie = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    copies = cut.startswith("a copy")
    axes = ("data", "model") if copies else ("data",)
    model = None if copies or len(sides) == 1 else "model"

    def cut_loss(p, x):  # as FSDP is written, so that parameters are gathered
        rows = lambda x, last=None: jax.lax.with_sharding_constraint(
            x, NamedSharding(mesh, P(axes, last))
        )
        hidden = rows(jnp.tanh(rows(x) @ p["w"]), model)
        return jnp.mean(rows(rows(jnp.tanh(hidden @ p["v"])) @ p["out"]) ** 2)

    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=lie[name])
        for name, shape in SHAPES.items()
    }
    by_row = NamedSharding(mesh, P(axes))
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=by_row)

    def sent(step):
        run = jax.jit(step, out_shardings=lie).lower(params, x).compile()
        return bytes_in_turns(run.as_text(), N)

    reducer = KINDS[kind]
    face = co.sharded(reducer, axes, mesh=mesh, param_specs=specs)
    step = co.value_and_reduced_grad(cut_loss, face, hold_rows=True)
    state = reducer.init({name: jnp.zeros(shape) for name, shape in SHAPES.items()})
    ours = sent(lambda p, x: step(p, x, state=state)[1])
    # a CPU has no reduce-scatter: it sends sums twice as far
    parts = 4 * sum(math.prod(lie[name].shard_shape(SHAPES[name])) for name in SHAPES)
    plain = sent(jax.grad(cut_loss)) - parts * (sides[0] - 1)
    if copies:  # what is gathered, summed to slabs, and among the copies of these
        plain = 3 * parts
    pairs = 3 * 2 * 4 * (ROWS + 1) ** 2
    assert ours <= 0.8 * plain + pairs


def test_an_update_is_sent_where_rows_would_be_dearer():
    """Of few, long lines each device would get all of the long factor."""
    shape = lambda *sides: jax.ShapeDtypeStruct(sides, jnp.float32)
    leaf = lambda terms, m, n: co.OuterProduct(
        shape(16, terms, m), shape(16, terms, n), (m, n)
    )
    table = jax.ShapeDtypeStruct((16, 3), jnp.int32)
    stay = Stay(0, ("data",), ("data",), ("data",))
    looked_up = co.OuterProduct(table, shape(16, 3, 8), (64, 8))
    stays = lambda leaf: stays_for_less(leaf, 4, False, stay)
    assert stays(shape(16, 64, 128))
    assert stays(leaf(1, 64, 128))
    assert not stays(leaf(1, 8, 8192))
    assert stays(looked_up)  # whose few lines go to every device
