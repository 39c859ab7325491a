"""Every reducer of the zoo on every stack: values, laws, and rows that cannot count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests._compilation import AS_USERS_DO
from tests._laws import Outcome, close
from tests._stacks import (
    ALL,
    NAMES,
    SIZES,
    STACKS,
    B,
    P,
    Stack,
    matrix,
    one_by_one,
    params,
    tree,
)
from tests.zoo import FACTORIES, ZOO

LEAVES = np.cumsum(SIZES)[:-1]


def rows():
    """Of every factory one now; CI asks for its other options as well.

    And for one of each as users compile it, which takes six times as long.
    """
    for each in ZOO:
        marks = () if each in FACTORIES else pytest.mark.whole_zoo
        yield pytest.param((each, None), id=str(each), marks=marks)
        if each in FACTORIES:
            asked, name = (each, AS_USERS_DO), f"{each} as users do"
            yield pytest.param(asked, id=name, marks=pytest.mark.whole_zoo)


@pytest.fixture(scope="module", params=[*rows()])
def asked(request):
    """One after another, so that what is compiled for one serves all its tests."""
    return request.param


@pytest.fixture(scope="module")
def row(asked):
    return asked[0]


def compared(row, updates):
    """Updates (S, P) with zeros for the stacks that a row does not compare."""
    known = [name not in row.rounding for name in NAMES]
    return np.where(np.array(known)[:, None], updates, 0)


def runner(row, dtype=jnp.float32, compiled=None, **options):
    """A row's reducer on many stacks in one compiled call."""
    reducer, parameters = row.make(**options), params(dtype)
    state = reducer.init(parameters)

    def update(rows, weights):
        return reducer.update(rows, state, parameters, weights=weights)

    program = jax.jit(one_by_one(update), compiler_options=compiled)

    def run(rows, weights):
        updates, new = program(tree(rows, dtype), jnp.asarray(weights, dtype))
        numbers = (new.consensus_ready, new.num_present, new.num_nonfinite)
        updates = compared(row, matrix(updates, batch_ndim=1))
        return Outcome(updates, *map(np.asarray, numbers))

    return run


@pytest.fixture(scope="module")
def run(asked):
    row, compiled = asked
    return runner(row, compiled=compiled)


def expected(row, stacks):
    """The reference on the present rows of every stack, (S, P)."""
    updates = []
    for rows, weights in [(s.rows[s.present], s.weights[s.present]) for s in stacks]:
        leaves = np.split(rows, LEAVES, axis=1)
        update = row.reference(leaves, weights) if len(rows) else [np.zeros(P)]
        updates.append(np.concatenate(update))
    return compared(row, np.stack(updates))


def test_equals_the_published_loops_in_float32(row, run):
    close(run(*ALL).update, expected(row, STACKS.values()), row.tolerance)


@functools.cache
def four_alone(place):
    """Four rows of every stack, with none beside them, in float64."""
    with jax.enable_x64(True):
        alone = runner(ZOO[place], jnp.float64, num_rows=4)
        return alone(ALL.rows[:, :4], ALL.weights[:, :4])


@pytest.mark.whole_zoo  # two programs more for every rule
def test_unpadded_rows_equal_the_published_loops_in_float64(row, run):
    """Four rows alone in float64; in float32 among two rows of nan and weight 0."""
    unpadded = four_alone(ZOO.index(row))
    four = [Stack(s.rows[:4], s.weights[:4]) for s in STACKS.values()]
    close(unpadded.update, expected(row, four), 1e-12)
    places = [0, 2, 3, 5]
    rows, weights = np.full_like(ALL.rows, np.nan), np.zeros_like(ALL.weights)
    rows[:, places], weights[:, places] = ALL.rows[:, :4], ALL.weights[:, :4]
    padded = run(rows, weights)
    close(padded.update, unpadded.update, row.tolerance)  # float32 against float64
    for got, wanted in zip(padded[1:], unpadded[1:], strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_keeps_its_laws(row, run):
    for law in row.laws:
        law(run, row.tolerance)


def test_counts_present_and_non_finite_rows(run):
    finite = np.isfinite(ALL.rows).all(-1)
    outcome = run(*ALL)
    np.testing.assert_array_equal(outcome.num_present, ALL.present.sum(1))
    wanted = ((ALL.weights > 0) & ~finite).sum(1)
    np.testing.assert_array_equal(outcome.num_nonfinite, wanted)


def test_a_non_finite_row_is_no_row(run):
    sound = np.where(np.isfinite(ALL.rows).all(-1)[..., None], ALL.rows, 0)
    without = run(sound, np.where(ALL.present, ALL.weights, 0)).update
    np.testing.assert_array_equal(run(*ALL).update, without)


def test_what_an_absent_row_holds_is_irrelevant(run):
    weights = np.tile(np.where(np.arange(B) < 4, 1.0, 0.0), (len(NAMES), 1))
    absent = weights[..., None] == 0
    expected_update = run(np.where(absent, 0, ALL.rows), weights).update
    for content in (np.nan, np.inf, 3e38, -1e-40):
        got = run(np.where(absent, content, ALL.rows), weights)
        np.testing.assert_array_equal(got.update, expected_update)
        finite = np.isfinite(ALL.rows[:, :4]).all(-1)
        np.testing.assert_array_equal(got.num_nonfinite, (~finite).sum(1))


def test_weights_are_relative(row, run):
    """Or multiply their rows, where nothing is divided by their sum."""
    as_rows = 3 * ALL.rows if row.weights_multiply else ALL.rows
    wanted = run(as_rows, ALL.weights).update
    close(run(ALL.rows, 3 * ALL.weights).update, wanted, row.tolerance)


def test_negative_and_non_finite_weights_are_zero(run):
    strange = np.where(ALL.weights > 0, ALL.weights, -1)
    strange[:, 5] = np.nan
    weights = np.where(strange > 0, strange, 0)
    np.testing.assert_array_equal(
        run(ALL.rows, strange).update, run(ALL.rows, weights).update
    )


def test_nothing_agreed_is_exactly_nothing_and_not_ready(row, run):
    update, ready = run(*ALL)[:2]
    assert not update[~ready].any()
    for name in ("nobody", "all nan", *row.empty):
        assert not ready[NAMES.index(name)], name
    for name in ("agreeing", "equal", "padded"):
        assert ready[NAMES.index(name)], name
        assert update[NAMES.index(name)].any(), name
