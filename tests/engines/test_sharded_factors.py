"""Factors on the wire: blocks of products answer as the products in memory do.

Every kind of rule, two steps with its state, on 2, 4 and 8 devices: products of vectors
and of sequences whose columns or lines are dealt out, with axes joined and moved, of
layers, and look-ups, next to an array and to products that are multiplied out.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import consensus_optax as co
from consensus_optax.engines.mesh.factors import Factors, as_travelling
from tests._stacks import matrix, one_by_one
from tests.engines.test_sharded import KINDS as RULES_BY_NAME
from tests.engines.test_sharded import assert_same, in_memory, mesh_of, on_mesh
from tests.engines.test_sources import stepper
from tests.zoo import KINDS

pytestmark = pytest.mark.slow

ROWS, STEPS = 16, 2
MESHES = (2, 4, 8)
# Name to factors' shapes without rows, shape of a row, steps, and which one is dealt.
LEAVES = {
    "dense": ((1, 8), (1, 21), (8, 21), (), "right"),
    "heads": ((2, 8), (2, 24), (8, 4, 6), (("transpose", (1, 0, 2)),), "right"),
    "layers": (
        *((2, 1, 8), (2, 1, 21), (2, 8, 21)),
        *((("transpose", (1, 2, 0)),), "right"),
    ),
    "lines": ((2, 41), (2, 6), (41, 6), (("reshape", (6, 41)),), "left"),
    "long": ((9, 8), (9, 8), (8, 8), (), ""),
    "table": ((3,), (3, 13), (40, 13), (), "right"),
}


@functools.cache
def stacks(dtype=np.float32):
    """Names, factors of rows (S, STEPS, ROWS, ...), and weights (S, ROWS)."""
    random = np.random.default_rng(27)
    ones = np.ones(ROWS)
    times = lambda *pairs: np.array([dict(pairs).get(i, 1) for i in range(ROWS)])
    absent = times((0, 0), (5, 0), (6, 0))
    changes = {
        "ordinary": (ones, ones),
        "weighted": (ones, random.uniform(0.5, 2, ROWS)),
        "far first": (times((0, 1e6)), ones),
        "far last": (times((ROWS - 1, -1e10)), ones),
        "nearly equal": (ones, ones),
        "zero row": (times((3, 0)), ones),
        "zero": (0 * ones, ones),
        "absent": (times((0, np.nan), (5, 1e10)), absent),
        "broken": (times((2, np.nan), (ROWS - 1, np.inf)), ones),
        "one row": (ones, (np.arange(ROWS) == 7).astype(float)),
        "nobody": (np.nan * ones, ones),
        "tiny": (1e-8 * ones, ones),
    }

    def factor(shape, shared, about):
        """About a common one, or that alone, the same in all steps."""
        common = random.normal(1, 1, shape)
        noise = random.normal(size=(STEPS, ROWS, *shape))
        return about * common + noise * (0.0 if shared else 0.5)

    def product(left, right, row_shape, steps, dealt):
        del dealt
        ordinary = [factor(shape, False, 1) for shape in (left, right)]
        # as near to each other as float32 tells them apart to three digits
        near = factor(left, True, 1), factor(right, False, 1e3)
        places = random.integers(0, row_shape[0], (STEPS, ROWS, *left))
        if len(left) < len(right):
            shared = np.broadcast_to(places[:1, :1], places.shape)
            ordinary[0], near = places, (shared, near[1])
        lefts, rights = [], []
        for name, (scale, _) in changes.items():
            a, d = near if name == "nearly equal" else ordinary
            lefts.append(a)
            rights.append(d * scale.reshape(-1, *[1] * len(right)))
        lefts, rights = np.stack(lefts), np.stack(rights)
        of_table = len(left) < len(right)
        return jnp.asarray(lefts, jnp.int32 if of_table else dtype), jnp.asarray(
            rights, dtype
        )

    factors = {name: product(*about) for name, about in LEAVES.items()}
    array = np.broadcast_to(factor((5,), False, 1), (len(changes), STEPS, ROWS, 5))
    factors["array"] = jnp.asarray(array, dtype)
    weights = np.stack([weights for _, weights in changes.values()])
    return list(changes), factors, jnp.asarray(weights, dtype)


def rows_of(factors):
    """Products of factors (ROWS, ...)."""
    of = lambda name, both: co.OuterProduct(*both, *LEAVES[name][2:4], both[1].dtype)
    rows = {name: of(name, factors[name]) for name in LEAVES}
    return rows | {"array": factors["array"]}


def one_stack():
    return rows_of(jax.tree.map(lambda x: x[0, 0], stacks()[1]))


def params():
    return jax.tree.map(lambda x: jnp.ones(x.shape[1:]), co.materialize(one_stack()))


def given(reducer, factors, weights, state):
    """Losses that no rule finds equal."""
    losses, rows = weights + 0.1 * factors["array"].sum(1), rows_of(factors)
    return reducer.update(rows, state, params(), weights=weights, values=losses)


def outcomes(row, devices, check_vma=True):
    """(updates (S, STEPS, P), ready, num_present, num_nonfinite) of all stacks."""
    _, rows, weights = stacks()
    reducer = row.make(num_rows=ROWS)
    start = reducer.init(params())
    if devices:
        reducer = co.sharded(reducer, "data")
    program = one_by_one(functools.partial(stepper(reducer, given), start=start))
    if devices:
        by_row = PartitionSpec(None, None, "data")
        program = jax.shard_map(
            program,
            mesh=mesh_of(devices),
            in_specs=(by_row, PartitionSpec(None, "data")),
            out_specs=PartitionSpec(),
            check_vma=check_vma,
        )
    update, seen = jax.jit(program)(rows, weights)
    return matrix(update, batch_ndim=2), [np.asarray(x) for x in seen]


@functools.cache
def of_products(kind):
    return outcomes(KINDS[kind], None)


def _asks(rule):
    """What a rule asks of its source."""
    if isinstance(rule, co.Fold):
        return "fold", rule.reads_signs
    return type(rule).__name__, getattr(rule, "reads", None)


def cases():
    """A mesh for each way to ask; in CI half of all meshes for each kind, by turns."""
    asked = [_asks(row.make(num_rows=ROWS).rule) for row in KINDS]
    for kind, row in enumerate(KINDS):
        first = asked.index(asked[kind]) == kind
        for place, devices in enumerate(MESHES):
            now = first and kind % 6 == place  # half of the ways to ask
            if not now and (kind + place) % 2:
                continue
            marks = () if now else pytest.mark.whole_zoo
            yield pytest.param(kind, devices, marks=marks, id=f"{row} on {devices}")


@pytest.mark.parametrize(("kind", "devices"), [*cases()])
def test_the_answer_is_that_of_products_in_memory(kind, devices):
    """With ``check_vma`` for every other kind."""
    row, (wanted, facts) = KINDS[kind], of_products(kind)
    got, seen = outcomes(row, devices, check_vma=kind % 2 == 0)
    size, gap = np.abs(wanted).max(-1), np.abs(got - wanted).max(-1)  # (S, STEPS)
    wrong = {
        name: f"off by {gap[s].max():.1e} of {size[s].max():.1e}"
        for s, name in enumerate(stacks()[0])
        if not (gap[s] <= 1e-5 * size[s]).all() and name not in row.rounding
    }
    assert not wrong
    for one, other in zip(facts, seen, strict=True):
        np.testing.assert_array_equal(one, other)


NOW = ("fold of leaves", "random", "by leaf", "losses", "memory")
TWO_AXES = [
    pytest.param(kind, marks=() if kind in NOW else pytest.mark.whole_zoo)
    for kind in RULES_BY_NAME
]


@pytest.mark.parametrize("kind", TWO_AXES)
def test_two_mesh_axes_the_state_and_what_is_asked_of_coordinates(kind):
    """Sums over a leaf, random numbers for each of its coordinates, an old update."""
    reducer, weights = RULES_BY_NAME[kind](), jnp.arange(1.0, ROWS + 1)
    mesh = mesh_of(2, 2, names=("replica", "data"))
    got = on_mesh(reducer, mesh, one_stack(), weights)
    assert_same(got, in_memory(reducer, one_stack(), weights), rtol=1e-5)


def test_what_fills_parts_up_is_not_counted():
    """A rule that moves coordinates which no row moves."""
    total = co.Statistic(lambda row, weight: weight * row, jnp.add)
    resolve = lambda merged, roster: [1 + jnp.abs(leaf) for leaf in merged[0]]
    reducer = co.reducer(co.Fold((total,), resolve))
    rows, weights = one_stack(), jnp.ones(ROWS)
    got = on_mesh(reducer, mesh_of(4), rows, weights)
    assert_same(got, in_memory(reducer, rows, weights), rtol=1e-5)
    # a division is rounded; one coordinate more of all would be 5e-4
    assert abs(got[1].consensus_ratio - 1) <= 2.0**-23


@pytest.mark.parametrize("kind", ["random", "gramian", "memory"])
def test_factors_of_a_parameter_cut_along_another_axis(kind):
    reducer, mesh = RULES_BY_NAME[kind](), mesh_of(2, 2, names=("data", "model"))
    spec = PartitionSpec(None, "model")
    across = co.sharded(reducer, "data", param_specs=spec)
    random = np.random.default_rng(3)
    left, right = (random.normal(1, 1, (8, 1, n)).astype(np.float32) for n in (9, 22))
    weights = jnp.arange(1.0, 9.0)

    def step(left, right, weights, state):
        rows = co.OuterProduct(left, right, (left.shape[-1], right.shape[-1]))
        assert isinstance(as_travelling(rows, 2, False, jnp.float32), Factors)
        params, extra = jnp.zeros(rows.shape[1:]), {"weights": weights}
        return across.update(rows, state, params, values=weights, **extra)[0]

    by_row, whole = PartitionSpec("data"), jnp.zeros((9, 22))
    state = reducer.init(whole)
    cut = lambda x: spec if x.shape == whole.shape else PartitionSpec()
    run = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(
            *(by_row, PartitionSpec("data", None, "model"), by_row),
            jax.tree.map(cut, state),
        ),
        out_specs=spec,
    )
    got = jax.jit(run)(left, right, weights, state)
    rows = co.OuterProduct(jnp.asarray(left), jnp.asarray(right), (9, 22))
    wanted = reducer.update(rows, state, whole, weights=weights, values=weights)[0]
    assert_same(got, wanted, rtol=1e-5)


def test_rows_that_are_rounded_on_the_wire_are_multiplied_out():
    """Products of factors would be other rows; the update is rounded as well."""
    rows, weights = {"dense": one_stack()["dense"]}, jnp.ones(ROWS)
    narrow = lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32)
    rounded = {"dense": narrow(rows["dense"].materialize())}
    got, _ = on_mesh(co.median(), mesh_of(4), rows, weights, wire_dtype=jnp.bfloat16)
    wanted, _ = in_memory(co.median(), rounded, weights)
    np.testing.assert_array_equal(got["dense"], narrow(wanted["dense"]))
    exact, _ = in_memory(co.median(), rows, weights)
    assert jnp.any(got["dense"] != narrow(exact["dense"]))


@pytest.mark.parametrize("devices", MESHES)
def test_each_leaf_travels_as_it_was_meant_to(devices):
    row = one_stack()
    for name, (*_, dealt) in LEAVES.items():
        sent = as_travelling(row[name], devices, False, jnp.float32)
        assert isinstance(sent, Factors) == bool(dealt), name
        assert not dealt or sent.dealt == dealt, name


def test_a_parameter_cut_along_an_explicit_axis_is_multiplied_out():
    leaf = one_stack()["dense"]
    assert isinstance(as_travelling(leaf, 4, False, jnp.float32), Factors)
    cut = dataclasses.replace(leaf, spec=(None, "model"))
    assert isinstance(as_travelling(cut, 4, False, jnp.float32), jax.Array)
