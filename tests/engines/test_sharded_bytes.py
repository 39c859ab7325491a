"""What travels: read off the compiled programs, and what a narrower wire changes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from benchmarks import bytes as traffic
from benchmarks._traffic import bytes_sent, collectives
from tests.engines.test_sharded import in_memory, mesh_of, on_mesh
from tests.zoo.own import heavy_ball

pytestmark = pytest.mark.slow

N = 8
# A large leaf and many small ones, none of which N devices share evenly.
SHAPES = [(1 << 15, 2), *((size,) for size in range(33, 40))]
SIZE = sum(map(math.prod, SHAPES))
KINDS = {
    "fold": lambda: co.sign_consensus(rescale=True),
    "fold of three": co.sand_mask,
    "combination": co.normalized_mean,
    "gramian": co.cosine_filter,
    "affine": lambda: co.krum(1),
    "by leaf": lambda: co.per_leaf(co.subspace_weighting()),
    "columns": co.median,
    "memory": heavy_ball,
    "among": lambda: co.among(co.cosine_filter(0.6), co.sign_consensus()),
    "mixing": lambda: co.after(co.nearest_neighbor_mixing(1), co.median()),
}


def program(reducer, num_rows=N, dtype=jnp.float32, **options):
    mesh = mesh_of(N)
    parameters = [jnp.zeros(shape, dtype) for shape in SHAPES]
    across = co.sharded(reducer, "data", **options)
    rows = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct((num_rows, *p.shape), dtype), parameters
    )
    spec = jax.P("data")
    step = lambda rows: across.update(rows, reducer.init(parameters), parameters)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=jax.P())
    compiled = jax.jit(mapped, in_shardings=jax.NamedSharding(mesh, spec)).lower(rows)
    return compiled.compile().as_text()


def pmean_bytes(itemsize=4):
    """Of an all-reduce of the update: what sums gradients sends at least."""
    return 2 * itemsize * SIZE * (N - 1) / N


def slack(num_rows=N, gramians=2):
    """What does not grow with the parameters: half a per cent of the above, or less.

    All-reduces of Gramians, with a previous update; 16 bytes that are said of every
    row; each leaf filled up to N equal parts on its way there and back.
    """
    of_pairs = gramians * 2 * 4 * (num_rows + 1) ** 2
    filled_up = 2 * 4 * N * len(SHAPES)
    return of_pairs + 16 * num_rows + filled_up


def test_the_parser_knows_a_plain_all_reduce():
    mean = traffic.contestants()["pmean"]
    hlo = traffic.compiled(mean, 1003, N)
    assert list(collectives(hlo)) == [("all-reduce", 4 * 1003)]
    assert bytes_sent(hlo, N) == 2 * 4 * 1003 * 7 / 8


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_bytes_than_a_plain_all_reduce(kind):
    hlo = program(KINDS[kind]())
    room = slack(gramians=2 * len(SHAPES) if kind == "by leaf" else 3)
    assert slack() < 0.005 * pmean_bytes()
    assert pmean_bytes() <= bytes_sent(hlo, N) <= pmean_bytes() + room
    sent = list(collectives(hlo))
    # the stack would be eight times the update
    assert all(
        size <= 4 * SIZE + slack() for what, size in sent if what == "all-gather"
    )
    # There and back, two Gramians, in a branch one of rows at another scale, what is
    # said of rows and of the update: not by leaf.
    assert len(sent) <= 7 < len(SHAPES)


def test_more_rows_on_a_device_send_what_they_must():
    four = 4 * N
    for reducer in (co.sign_consensus(), co.mean()):
        sent = bytes_sent(program(reducer, four), N)
        assert pmean_bytes() <= sent <= pmean_bytes() + slack(four)
    sent = bytes_sent(program(co.median(), four), N)
    more = sent - 2.5 * pmean_bytes()  # four rows there, one update back
    assert 0 <= more <= slack(four) + 3 * 4 * N * len(SHAPES)  # each row is filled up


def test_half_the_numbers_half_the_bytes():
    for options in ({"wire_dtype": jnp.bfloat16}, {"dtype": jnp.bfloat16}):
        for reducer in (co.cosine_filter(), co.mean(), co.median()):
            sent = bytes_sent(program(reducer, **options), N)
            assert pmean_bytes(2) <= sent <= pmean_bytes(2) + slack()
    votes = bytes_sent(program(co.sign_vote()), N)  # -1, 0 or 1, there and back
    assert pmean_bytes(1) <= votes <= pmean_bytes(1) + slack()


def test_a_narrow_wire_rounds_rows_and_update_and_decides_in_float32():
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.normal(1, 1, (8, 33)), jnp.float32)
    weights = jnp.ones(8)
    rounded = rows.astype(jnp.bfloat16).astype(jnp.float32)
    for reducer in (co.cosine_filter(0.9), co.median(), co.sign_consensus(), co.mean()):
        got, _ = on_mesh(reducer, mesh_of(8), rows, weights, wire_dtype=jnp.bfloat16)
        wanted, _ = in_memory(reducer, rounded, weights)
        assert got.dtype == jnp.float32
        # equal but for the rounding of the update: half a unit in the last place
        np.testing.assert_allclose(got, wanted, rtol=2.0**-8, atol=1e-30)
        exact, _ = in_memory(reducer, rows, weights)
        bound = 2.0**-7 * np.abs(np.asarray(rows)).max()
        if reducer.rule.__class__ is not co.Weighting:  # no threshold is near
            np.testing.assert_allclose(got, exact, rtol=0, atol=bound)


def test_several_rows_are_combined_before_they_are_rounded():
    rng = np.random.default_rng(1)
    rows = jnp.asarray(rng.normal(1, 1, (8, 33)), jnp.float32)
    got, _ = on_mesh(co.mean(), mesh_of(2), rows, jnp.ones(8), wire_dtype=jnp.bfloat16)
    bound = 2 * 2.0**-7 * np.abs(np.asarray(rows)).mean(0)
    assert np.all(np.abs(got - np.asarray(rows).mean(0)) <= bound)


def test_signs_travel_without_loss():
    rng = np.random.default_rng(2)
    rows = jnp.asarray(rng.normal(0, 1, (8, 33)), jnp.float32).at[3, 2].set(jnp.nan)
    weights = jnp.arange(1.0, 9.0)
    for magnitude in ("unit", "vote"):
        reducer = co.sign_vote(magnitude)
        for wire in (None, jnp.int8):
            got, _ = on_mesh(reducer, mesh_of(8), rows, weights, wire_dtype=wire)
            wanted, _ = in_memory(reducer, rows, weights)
            np.testing.assert_array_equal(got, wanted)


def test_what_overflows_on_the_wire_is_a_non_finite_row():
    rows = jnp.ones((8, 5), jnp.float32).at[2, 1].set(1e6)
    got, state = on_mesh(
        co.mean(), mesh_of(8), rows, jnp.ones(8), wire_dtype=jnp.float16
    )
    assert got.tolist() == [1.0] * 5
    assert state.num_nonfinite == 1


def test_the_published_adacons_sends_twice_as_much():
    contestants = traffic.contestants()
    sent = {
        name: bytes_sent(traffic.compiled(contestants[name], 5003, N), N)
        for name in ("pmean", "AdaCons as published", "subspace_weighting (AdaCons)")
    }
    plain = sent["pmean"]
    assert abs(sent["AdaCons as published"] - 2 * plain) < 1024
    assert sent["subspace_weighting (AdaCons)"] < plain + slack()


def test_the_formula_for_more_devices_is_what_is_counted():
    reduce = traffic.contestants()["cosine_filter"]
    of_eight = bytes_sent(traffic.compiled(reduce, 5003, 8), 8)
    extra = of_eight - traffic.formula(5003, 8, 0)
    counted = bytes_sent(traffic.compiled(reduce, 5003, 4), 4)
    assert abs(traffic.formula(5003, 4, extra) - counted) < 256
