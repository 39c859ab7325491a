"""Rows of a whole mesh under ``jit``, dealt out layer by layer where they are made."""

import re

import jax
import jax.numpy as jnp
import pytest

import consensus_optax as co
from benchmarks import _flops
from benchmarks._traffic import collectives
from consensus_optax._gradients import jaxprs
from tests._fsdp import (
    DEVICES,
    GROUP,
    MESH,
    PARAMS,
    ROWS,
    SPECS,
    SUMS,
    X,
    check,
    dealt,
    loss,
    of_rows,
    step_of,
)

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
        pytest.param(
            co.after(co.nearest_neighbor_mixing(2), co.krum(1, 3)),
            id="mixed",
            marks=pytest.mark.whole_zoo,
        ),
    ],
)
def test_rows_that_are_held_are_made_and_sent_once(reducer):
    """Where factors are no smaller: one pass deals them out, all looks are local."""
    program = check(reducer, 8 * SUMS, hold_rows=True).as_text()
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
    # gradients that arrive transposed are dealt out as their parameters lie
    places = re.findall(r"split_axis=(\d)", program)
    assert sorted(places) == (["1", "1", "2"] if told else ["1", "1", "1"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "reducer",
    [
        pytest.param(co.cosine_filter(1.0), id="pairs"),
        pytest.param(co.median(), id="columns"),
        pytest.param(co.after(co.nearest_neighbor_mixing(2), co.median()), id="mixed"),
        pytest.param(
            co.after(co.bucketing(2, jax.random.key(0)), co.sign_consensus(0.6)),
            id="mixed, fold",
            marks=pytest.mark.whole_zoo,
        ),
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
