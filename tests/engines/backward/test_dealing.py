"""Rows of a whole mesh under ``jit``, dealt out layer by layer where they are made."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import consensus_optax as co
from benchmarks import _flops
from benchmarks._traffic import collectives
from consensus_optax._gradients import jaxprs

LAYERS, WIDTH, ROWS, GROUP, DEVICES = 3, 16, 8, 2, 4
MESH = jax.make_mesh(
    (DEVICES,), ("data",), (AxisType.Auto,), devices=jax.devices()[:DEVICES]
)
SPECS = {
    "layers": {
        "up": PartitionSpec(None, "data"),
        "down": PartitionSpec(None, None, "data"),
    },
    "readout": PartitionSpec("data"),
}
SHARDINGS = jax.tree.map(lambda spec: NamedSharding(MESH, spec), SPECS)
BY_ROW = NamedSharding(MESH, PartitionSpec("data"))


def loss(params, x):
    @jax.checkpoint
    def block(x, p):
        return x + jnp.tanh(x @ p["up"]) @ p["down"], None

    x, _ = jax.lax.scan(block, x, params["layers"])
    return jnp.mean(jnp.tanh(x @ params["readout"]))


def numbers(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape) / 2


PARAMS = {
    "layers": {
        "up": numbers(LAYERS, WIDTH, 2 * WIDTH),
        "down": numbers(LAYERS, 2 * WIDTH, WIDTH),
    },
    "readout": numbers(WIDTH, WIDTH),
}


def of_rows(count):
    """Examples of rows, of which row 2 cannot count, and weights."""
    x = numbers(count * GROUP, 24, WIDTH).at[2 * GROUP].set(jnp.inf)
    return x, jnp.ones(count).at[5].set(0).at[6].set(3)


X, WEIGHTS = of_rows(ROWS)


def step_of(reducer, face, weights=WEIGHTS, **options):
    step = co.value_and_reduced_grad(loss, face, group_size=GROUP, **options)
    return functools.partial(step, state=reducer.init(PARAMS), weights=weights)


def compiled(reducer, held=False, x=X, weights=WEIGHTS):
    face = co.sharded(reducer, "data", mesh=MESH, param_specs=SPECS)
    step = jax.jit(
        step_of(reducer, face, weights, hold_rows=held),
        in_shardings=(SHARDINGS, BY_ROW),
        out_shardings=(None, SHARDINGS, None),
    )
    return step.lower(PARAMS, x).compile()


def check(reducer, tolerance, held=False, x=X, weights=WEIGHTS):
    on_mesh = compiled(reducer, held, x, weights)
    given = jax.device_put(PARAMS, SHARDINGS), jax.device_put(x, BY_ROW)
    value, update, state = on_mesh(*given)
    expected = step_of(reducer, reducer, weights, hold_rows=True)(PARAMS, x)
    assert int(state.num_nonfinite) == 1
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    close(value, expected[0])
    for own, other in zip(*map(jax.tree.leaves, (update, expected[1])), strict=True):
        close(own, other, atol=tolerance * np.abs(other).max())
    return on_mesh


def dealt(hlo):
    """Bytes of rows that are dealt out, by the library rather than by the compiler."""
    own = "\n".join(line for line in hlo.splitlines() if "/all_to_all" in line)
    return sum(size for kind, size in collectives(own) if kind == "all-to-all")


# Sums of 48 terms in another order, in float32; rows are of one size.
SUMS = 48 * 2.0**-23


# In the scan's body once: a layer's rows of this device; and the readout's.
ONCE = ROWS // DEVICES * 4 * sum(leaf[0].size for leaf in PARAMS["layers"].values())
ONCE += ROWS // DEVICES * 4 * PARAMS["readout"].size


@pytest.mark.slow
def test_rows_that_are_less_than_what_merges_are_sent_once():
    """Two rows of each device, where a quorum needs four arrays."""
    assert dealt(check(co.sign_consensus(0.6), 8 * SUMS).as_text()) == ONCE


def sent(program):
    """What the library sends: bytes by kind of collective."""
    lines = [
        x
        for x in program.as_text().splitlines()
        if "/all_to_all" in x or "/reduce_scatter" in x
    ]
    return sorted(collectives("\n".join(lines)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "reducer",
    [
        pytest.param(co.mean(), id="nothing"),
        pytest.param(co.sign_consensus(), id="minmod"),
        pytest.param(co.sand_mask(), id="moments"),
        pytest.param(co.normalized_mean(), id="norms", marks=pytest.mark.whole_zoo),
        pytest.param(co.sign_consensus(0.6), id="several", marks=pytest.mark.whole_zoo),
        pytest.param(
            co.chain(co.clip_examples(0.05), co.graddrop(0.5, jax.random.key(0))),
            id="scaled",
            marks=pytest.mark.whole_zoo,
        ),
        pytest.param(
            co.per_leaf(co.normalized_mean()), id="leaves", marks=pytest.mark.whole_zoo
        ),
    ],
)
def test_of_many_rows_on_a_device_what_merges_is_sent(reducer):
    """However many they are; nothing of a device on which no row counts."""
    programs = []
    for count in (32, 64):
        x, weights = of_rows(count)
        each = count // DEVICES
        absent = jnp.arange(count) // each == 1
        x = x.at[each * GROUP].set(jnp.nan)  # not even of its first row
        given = {"x": x, "weights": jnp.where(absent, 0, weights)}
        programs.append(check(reducer, 8 * SUMS, **given))
    assert sent(programs[0]) == sent(programs[1]) != []


@pytest.mark.slow
@pytest.mark.parametrize(
    "reducer",
    [
        pytest.param(co.cosine_filter(1.0), id="pairs"),
        pytest.param(co.chain(co.clip_examples(0.05), co.mean()), id="norms"),
        pytest.param(
            co.chain(co.clip_examples(0.05), co.median()),
            id="scaled",
            marks=pytest.mark.whole_zoo,
        ),
        pytest.param(
            co.per_leaf(co.krum(1, 3)), id="leaves", marks=pytest.mark.whole_zoo
        ),
        pytest.param(
            co.previous_update_filter(1.5), id="previous", marks=pytest.mark.whole_zoo
        ),
        pytest.param(
            co.among(co.krum(1, 3), co.sign_consensus()),
            id="among",
            marks=pytest.mark.whole_zoo,
        ),
        pytest.param(
            co.geometric_median(), id="distances", marks=pytest.mark.whole_zoo
        ),
    ],
)
def test_rows_that_are_held_are_made_and_sent_once(reducer):
    """Where factors are no smaller: one pass deals them out, all looks are local."""
    program = check(reducer, 8 * SUMS, held=True).as_text()
    assert dealt(program) == ONCE
    sent = [(kind, size) for kind, size in collectives(program)]
    # not whole on any device: rows, nor what is made of them
    row = sum(leaf.nbytes for leaf in jax.tree.leaves(PARAMS))
    assert sum(size for kind, size in sent if kind == "all-reduce") < row // 4
    plain = jax.make_jaxpr(jax.value_and_grad(loss))(PARAMS, X)
    face = co.sharded(reducer, "data", mesh=MESH, param_specs=SPECS)
    step = jax.make_jaxpr(step_of(reducer, face, hold_rows=True))(PARAMS, X)
    passes = [_flops.of_products(x.jaxpr, 1) for x in (step, plain)]
    pairs = 8 * ROWS**2 * row  # Gramians of this few rows of few terms
    assert passes[0] <= passes[1] + pairs


def test_layers_wait_for_the_loss_as_well(monkeypatch):
    """It would be taken at last, of logits that are held until then."""
    waited = []

    def record(array, made):
        waited.append({x.shape for x in jax.tree.leaves(made)})
        return waiting(array, made)

    waiting = jaxprs.waiting
    monkeypatch.setattr(jaxprs, "waiting", record)
    step = step_of(co.sign_consensus(), co.sign_consensus(), hold_rows=False)
    jax.make_jaxpr(step)(PARAMS, X)
    assert waited
    assert all((ROWS,) in shapes for shapes in waited)


@pytest.mark.parametrize("told", [True, False])
def test_updates_lie_as_their_parameters_do(told):
    reducer = co.sign_consensus()
    specs = SPECS if told else None
    face = co.sharded(reducer, "data", mesh=MESH, param_specs=specs)
    step = step_of(reducer, face, hold_rows=False)
    program = str(jax.make_jaxpr(step)(PARAMS, X))
    # "up" arrives as its parameter lies, "down" too, the readout transposed
    places = re.findall(r"split_axis=(\d)", program)
    assert sorted(places) == (["1", "2", "2"] if told else ["1", "1", "1"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "reducer",
    [
        pytest.param(co.cosine_filter(1.0), id="pairs"),
        pytest.param(co.median(), id="columns"),
        pytest.param(co.normalized_mean(), id="norms", marks=pytest.mark.whole_zoo),
        pytest.param(
            co.previous_update_filter(1.5), id="previous", marks=pytest.mark.whole_zoo
        ),
        pytest.param(
            co.among(co.krum(1, 3), co.sign_consensus()),
            id="among",
            marks=pytest.mark.whole_zoo,
        ),
        pytest.param(
            co.chain(co.clip_examples(0.05), co.probe(reads="norms"), co.mean()),
            id="chain",
            marks=pytest.mark.whole_zoo,
        ),
    ],
)
def test_the_answer_is_that_of_one_device(reducer):
    check(reducer, 8 * SUMS)  # weights of rows are off by as much again


@pytest.mark.parametrize(
    ("reducer", "wire", "travels"),
    [
        (co.median(), None, "f32"),
        (co.median(), jnp.bfloat16, "bf16"),
        (co.sign_vote(), jnp.int8, "f32"),  # for signs, which rows are not
    ],
    ids=["theirs", "narrower", "signs"],
)
def test_rows_travel_in_the_wire_dtype(reducer, wire, travels):
    face = co.sharded(reducer, "data", mesh=MESH, wire_dtype=wire)
    step = step_of(reducer, face, hold_rows=False)
    program = str(jax.make_jaxpr(step)(PARAMS, X))
    dtypes = set(re.findall(r":(\w+)\[\S* = (?:all_to_all|reduce_scatter)", program))
    assert dtypes == {travels}


def test_inside_of_microbatches_it_is_still_refused():
    face = co.sharded(co.sign_consensus(), "data", mesh=MESH)
    step = co.value_and_reduced_grad(loss, face, microbatch_size=2)
    with pytest.raises(ValueError, match="A sharded reducer takes microbatches"):
        step(PARAMS, X, state=co.sign_consensus().init(PARAMS))
