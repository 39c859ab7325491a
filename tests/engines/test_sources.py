"""The law of sources: an answer does not depend on how the rows are obtained.

Every rule, three steps with its state, from rows in memory, in microbatches, reduced
inside of the backward pass, on a mesh, and both on a mesh, on stacks with far, nearly
equal, zero, absent and broken rows. All stacks of one (rule, source) are one compiled
program.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import consensus_optax as co
from tests._stacks import P, matrix, one_by_one, params, tree
from tests.engines.test_sharded import mesh_of
from tests.zoo import ASKING, KINDS, ZOO
from tests.zoo.multi_objective import MULTI_OBJECTIVE

ROWS, STEPS = 12, 3
SIZES = (1e-18, 1e-30, 1e25)
# Squares of these have a digit, or overflow: who takes them as they are differs.
NO_SQUARES = ("of size 1e-18", "of size 1e+25")
SQUARES = ("sand_mask", "signal_to_noise", "subspace_weighting")
SQUARES += ("scale_by_example_moments",)
# Of the rows that lie apart two have one inner product with the far one, whose size
# leaves nothing else to choose between them: MoCo steps to the one or the other.
TIES = ("far 1e+06 first", "far 1e+06 last")
MOST = 1e-2  # however a problem magnifies, no update is a hundredth off


def loss(weights, batch):
    """Linear, so that the gradient of a row is the row, to the bit."""
    inner = jax.tree.map(lambda w, x: jnp.vdot(w, x[0]), weights, batch)
    return sum(jax.tree.leaves(inner))


def loss_of_layers(weights, batch):
    """The same loss, of products: one kernel in a scan over layers, one outside of it.

    A row is a product with the identity, exact. So is the value, which rules may read.
    """
    rows, ones = batch

    def product(w, x):
        eye = ones[0] * jnp.eye(w.shape[0], dtype=w.dtype)  # for every row its own
        return jnp.vdot(x, eye @ w)

    def layer(total, both):
        return total + product(*both), None

    halves = lambda x: x.reshape(2, 2, 4)  # of the kernel, two layers
    inside = weights["block"]["kernel"], rows["block"]["kernel"][0]
    total, _ = jax.lax.scan(layer, 0 * ones[0], tuple(map(halves, inside)))
    total += product(weights["layers"][0], rows["layers"][0][0])
    for name in ("scale", "empty"):
        total += jnp.vdot(weights[name], rows[name][0])
    return (
        loss(jax.lax.stop_gradient(weights), rows)
        + total
        - jax.lax.stop_gradient(total)
    )


@functools.cache
def stacks(dtype=np.float32):
    """Name to rows (STEPS, ROWS, P) and weights (ROWS,)."""
    random = np.random.default_rng(26)
    center = random.normal(size=P)
    center[-1] = 2
    rows = center + 0.5 * random.normal(size=(STEPS, ROWS, P))
    ones = np.ones(ROWS)

    def changed(*changes):
        new = rows.copy()
        for index, value in changes:
            new[:, index] = value
        return new

    apart = center + 50 * np.sign(random.normal(size=(STEPS, 3, P)))
    far = {}
    for size in (1e3, 1e6, 1e10):
        away = size * np.sign(random.normal(size=(STEPS, P)))
        for name, place in (("first", 0), ("last", ROWS - 1)):
            moved = rows.copy()
            moved[:, 4:7], moved[:, place] = apart, away
            far[f"far {size:g} {name}"] = moved, ones
    absent = ones.copy()
    absent[[0, 5, 6]] = 0
    found = far | {
        "ordinary": (rows, ones),
        "weighted": (rows, random.uniform(0.5, 2, ROWS)),
        # as near to each other as float32 tells them apart to three digits
        "nearly equal": (1e3 * center + rows, ones),
        "equal": (np.broadcast_to(rows[:, :1], rows.shape), ones),
        "zero row": (changed((3, 0.0)), ones),
        "zero": (0 * rows, ones),
        "absent": (changed((0, np.nan), (5, 1e10)), absent),
        "broken": (changed((2, np.nan), (11, np.inf)), ones),
        "one row": (rows, (np.arange(ROWS) == 7).astype(float)),
        "nobody": (changed((slice(None), np.nan)), ones),
        "tiny": (1e-10 * rows, ones),
        # squares of these are no float32 numbers, and the first of the last is far
        **{f"of size {size:g}": (size * rows, ones) for size in SIZES},
        "tiny and far": (1e-30 * changed((0, 1e3)), ones),
    }
    names = list(found)
    arrays = [np.stack([found[name][i] for name in names]) for i in (0, 1)]
    return names, *(x.astype(dtype) for x in arrays)


def stepper(reducer, update_of):
    """Three steps of one stack: what comes out of each, for rows (STEPS, B, ...)."""

    def steps(rows, weights, start):
        def step(state, now):
            update, state = update_of(reducer, now, weights, state)
            seen = state.consensus_ready, state.num_present, state.num_nonfinite
            return state, (update, seen)

        return jax.lax.scan(step, start, rows)[1]

    return steps


def given_rows(reducer, rows, weights, state):
    values = loss_values(rows)
    return reducer.update(
        rows, state, params_like(rows), weights=weights, values=values
    )


def computed(size):
    def update_of(reducer, rows, weights, state):
        of_batch = co.value_and_reduced_grad(loss, reducer, microbatch_size=size)
        _, update, new = of_batch(params_like(rows), rows, state=state, weights=weights)
        return update, new

    return update_of


def inside(reducer, rows, weights, state):
    """Reduced where the backward pass makes them."""
    step = co.value_and_reduced_grad(loss_of_layers, reducer, hold_rows=False)
    batch = rows, jnp.ones_like(weights)
    _, update, new = step(params_like(rows), batch, state=state, weights=weights)
    return update, new


def params_like(rows):
    return params(jax.tree.leaves(rows)[0].dtype)


def loss_values(rows):
    one = lambda row: loss(params_like(rows), jax.tree.map(lambda x: x[None], row))
    return jax.vmap(one)(rows)


MESH = 4
SOURCES = {
    "microbatches of 5": (computed(5), None),
    "microbatches of 1": (computed(1), None),
    "backward pass": (inside, None),
    "mesh": (given_rows, MESH),
    "microbatches of 2 on a mesh": (computed(2), MESH),
    "backward pass on a mesh": (inside, MESH),
}


def outcomes(row, source, dtype=np.float32):
    """(updates (S, STEPS, P), ready, num_present, num_nonfinite) of all stacks."""
    names, rows, weights = stacks(dtype)
    reducer = row.make(num_rows=ROWS)
    update, seen = in_steps(reducer, source, rows, weights, stepper)
    return names, matrix(update, batch_ndim=2), [np.asarray(x) for x in seen]


def in_steps(reducer, source, rows, weights, stepper):
    """What a stepper makes of rows (S, STEPS, ROWS, P) that come from a source.

    Those in float64 at once, as of many seeds.
    """
    update_of, devices = SOURCES[source] if source else (given_rows, None)
    start, dtype = reducer.init(params(rows.dtype)), rows.dtype
    if devices:
        reducer = co.sharded(reducer, "data")
    over = jax.vmap if dtype == np.float64 else one_by_one
    program = over(functools.partial(stepper(reducer, update_of), start=start))
    if devices:
        by_row = PartitionSpec(None, None, "data")
        program = jax.shard_map(
            program,
            mesh=mesh_of(devices),
            in_specs=(by_row, PartitionSpec(None, "data")),
            out_specs=PartitionSpec(),
        )
    return jax.jit(program)(tree(rows, dtype), jnp.asarray(weights))


@functools.cache
def in_memory(row_id, dtype=np.float32):
    return outcomes(ZOO[row_id], None, dtype)


@functools.cache
def conditions():
    """Condition number of the present rows' Gramian in every stack, the worst step's.

    Rules that solve with it magnify what another order of summation changes in it.
    """
    _, rows, weights = stacks(np.float64)
    found = []
    for own, counts in zip(rows, weights, strict=True):
        sound = own[:, (counts > 0) & np.isfinite(own).all((0, 2))]
        some = sound.size > 0
        values = (
            np.linalg.svd(sound, compute_uv=False) ** 2 if some else np.ones((1, 1))
        )
        rank = lambda of_step: of_step[of_step > 1e-12 * of_step.max()]
        found.append(max(x.max() / rank(x).min() if x.any() else 1 for x in values))
    return np.array(found)


def check(row, source, rtol, dtype=np.float32):
    names, wanted, facts = in_memory(ZOO.index(row), dtype)
    _, got, seen = outcomes(row, source, dtype)
    size = np.abs(wanted).max(-1)  # (S, STEPS)
    gap = np.abs(got - wanted).max(-1)
    allowed = np.full(len(names), rtol)
    if row in MULTI_OBJECTIVE:  # P terms of each product, and the problem's magnifying
        magnified = np.sqrt(P) * np.finfo(dtype).eps * conditions()
        allowed = np.clip(magnified, rtol, MOST)
    if row.factory is co.cagrad and dtype == np.float32:  # the place of a flat minimum
        allowed = np.maximum(allowed, np.sqrt(np.finfo(dtype).eps))
    squares = row.factory.__name__ in SQUARES
    unknown = NO_SQUARES * squares + TIES * (row.factory is co.moco)
    known = np.array([name not in unknown for name in names])
    wrong = {
        name: f"off by {gap[s].max():.1e} of {size[s].max():.1e}"
        for s, name in enumerate(names)
        if not (gap[s] <= allowed[s] * size[s]).all()
        and name not in row.rounding
        and known[s]
    }
    assert not wrong
    for one, other in zip(facts, seen, strict=True):
        np.testing.assert_array_equal(one[known], other[known])


def cases():
    """One source for each way of reading; in CI all of a kind, one of any other row."""
    for index, row in enumerate(ZOO):
        for place, source in enumerate(SOURCES):
            now = row in ASKING and ASKING.index(row) % len(SOURCES) == place
            turn = index % len(SOURCES) == place
            if not (now or row in KINDS or turn):
                continue
            marks = () if now else pytest.mark.whole_zoo
            yield pytest.param(row, source, marks=marks, id=f"{row} in {source}{index}")


def by_turns(index, place):
    """Whether it is the turn of this source, and of the one three places on."""
    return (index - place) % 3 == 0


IN_FLOAT64 = [
    pytest.param(row, source, id=f"{row} in {source}")
    for index, row in enumerate(KINDS)
    for place, source in enumerate(SOURCES)
    if by_turns(index, place)
]


@pytest.mark.parametrize(("row", "source"), [*cases()])
def test_the_answer_does_not_depend_on_the_source(row, source):
    check(row, source, rtol=1e-5)


@pytest.mark.whole_zoo
@pytest.mark.parametrize(("row", "source"), IN_FLOAT64)
def test_nor_does_it_in_float64(row, source):
    with jax.enable_x64(True):
        check(row, source, rtol=1e-12, dtype=np.float64)
