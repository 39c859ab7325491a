"""Every statistic in both ways of merging a stack, against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax._rows import folding
from consensus_optax._rows import statistics as ours
from consensus_optax._rules.kinds import Roster
from tests._bounds import assert_sums

B, P = 7, 40


def stacks():
    """Name to rows and weights; an absent row may hold anything, the first above all.

    A row that stands in for it changes nothing; row 0 would.
    """
    random = np.random.default_rng(3)
    rows = random.normal(size=(B, P)).astype(np.float32)
    rows[:, :10] = np.abs(rows[:, :10])  # all agree
    rows[:, 10:20] *= random.integers(0, 2, (B, 10))  # some are zero
    rows[:, 20] = 0
    far = rows * 10.0 ** np.arange(-15, 20, 5)[:, None]
    bad = rows.copy()
    bad[0], bad[4] = np.nan, np.inf
    weights = np.array([2, 1, 0.5, 3, 1, 4, 0.25])
    first = np.where(np.arange(B) == 0, 0, weights)
    several = np.where(np.isin(np.arange(B), [0, 1, 4]), 0, weights)
    return {
        "all": (rows, weights),
        "far": (far.astype(np.float32), weights),
        "equal": (np.tile(rows[3], (B, 1)), weights),
        "without the first": (rows - 100 * np.eye(B, 1), first),
        "without several": (bad, several),
        "one alone": (bad, np.where(np.arange(B) == 5, weights, 0)),
    }


def minmod(rows, weights):
    """The smallest magnitude where all have one sign."""
    same = (rows > 0).all(0) | (rows < 0).all(0)
    return np.where(same, np.sign(rows[0]) * np.abs(rows).min(0), 0)


over_rows = lambda f: lambda rows, weights: f(rows, weights[:, None]).sum(0)
SUMS = {
    "WEIGHTED_SUM": over_rows(lambda g, w: w * g),
    "WEIGHTED_SQUARE": over_rows(lambda g, w: w * g * g),
    "WEIGHTED_SIGN": over_rows(lambda g, w: w * np.sign(g)),
    "WEIGHTED_MAGNITUDE": over_rows(lambda g, w: w * np.abs(g)),
    "NONZERO_WEIGHT": over_rows(lambda g, w: w * (g != 0)),
    "POSITIVE_SUM": over_rows(lambda g, w: w * np.where(g > 0, g, 0)),
    "NEGATIVE_SUM": over_rows(lambda g, w: w * np.where(g < 0, g, 0)),
    "LOG_MAGNITUDE": over_rows(lambda g, w: w * np.log(np.abs(g) + 1e-10)),
}
EXACT = {
    "SMALLEST_POSITIVE": lambda g, w: np.where(g > 0, g, np.inf).min(0),
    "LARGEST_NEGATIVE": lambda g, w: np.where(g < 0, g, -np.inf).max(0),
    "MINMOD": minmod,
}
OF_MAGNITUDES = {
    "LOG_MAGNITUDE": over_rows(lambda g, w: w * np.abs(np.log(np.abs(g) + 1e-10))),
    "WEIGHTED_SUM": SUMS["WEIGHTED_MAGNITUDE"],
    "WEIGHTED_SIGN": SUMS["NONZERO_WEIGHT"],
}
# Those of one kind alone let a fold stop early, so they are merged apart.
NAMES = [*SUMS, *EXACT]


def test_every_statistic_is_here():
    known = {k for k, v in vars(ours).items() if isinstance(v, ours.Statistic)}
    assert known == {*NAMES, "MOMENTS"}


def check(name, got, rows, weights, roundings=0):
    """``roundings``: of each term, beyond its product with the weight."""
    present = weights > 0
    rows, weights = rows[present].astype(float), weights[present]
    if name in EXACT and not roundings:
        np.testing.assert_array_equal(got, np.float32(EXACT[name](rows, weights)))
        return
    wanted = {**SUMS, **EXACT}[name](rows, weights)
    size = OF_MAGNITUDES.get(name, lambda *_: np.abs(wanted))(rows, weights)
    if name == "LOG_MAGNITUDE":  # of a rounded sum, near 1 that of the sum decides
        size = size + weights.sum()
    assert_sums(got, wanted, size, len(rows), roundings=3 + roundings)


WAYS = {"in turn": folding.array_in_turn, "at once": folding.array_at_once}


@pytest.mark.parametrize("way", WAYS)
def test_a_stack_merged(way):
    every = [getattr(ours, name) for name in NAMES]
    groups = [every[:-1], every[-1:]]  # minmod stops early, if it is alone

    @jax.jit
    def merged(rows, weights):
        order = Roster(weights, jnp.int32(0), {}).order
        return [x for group in groups for x in WAYS[way](rows, group, weights, order)]

    for rows, weights in stacks().values():
        got = merged(jnp.asarray(rows), jnp.asarray(weights, jnp.float32))
        for name, statistic in zip(NAMES, got, strict=True):
            check(name, statistic, rows, weights)


@pytest.mark.parametrize("way", WAYS)
def test_moments_of_a_stack(way):
    """Every merge rounds a mean once, by whose error deviations are off, and them."""

    @jax.jit
    def merged(rows, weights):
        order = Roster(weights, jnp.int32(0), {}).order
        return WAYS[way](rows, (ours.MOMENTS,), weights, order)[0]

    for rows, weights in stacks().values():
        given = jnp.asarray(rows), jnp.asarray(weights, jnp.float32)
        total, mean, squares = map(np.float64, merged(*given))
        rows, weights = rows[weights > 0].astype(float), weights[weights > 0, None]
        wanted = (weights * rows).sum(0) / weights.sum()
        deviations = (weights * (rows - wanted) ** 2).sum(0)
        unit = 4 * B * np.finfo(np.float32).eps
        np.testing.assert_allclose(total, weights.sum(), rtol=unit)
        assert (np.abs(mean - wanted) <= unit * np.abs(rows).max(0)).all()
        of_mean = np.abs(rows).max(0) * np.sqrt(deviations * weights.sum())
        error = np.abs(squares - deviations)
        assert (error <= unit * (deviations + of_mean)).all()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 9])
def test_any_number_of_rows(count):
    """A turn is of four rows, and halves may be odd: no row twice, none left out."""
    rows = 2.0 ** np.arange(count)[:, None] * np.ones((1, 3))
    given = jnp.asarray(rows, jnp.float32), (ours.WEIGHTED_SUM,), jnp.ones(count)
    for fold in WAYS.values():
        (total,) = fold(*given, jnp.arange(count, dtype=jnp.int32))
        assert total.tolist() == 3 * [2.0**count - 1]


def test_a_fold_that_can_change_nothing_any_more_stops():
    """Only the first turn is taken: what would come out of the others is not read."""
    rows = jnp.ones((13, 2)).at[1].set(-1)
    seen = []

    def read(i):
        jax.debug.callback(lambda i: seen.append(int(i)), i)
        return rows[i]

    (nothing,) = jax.jit(
        lambda weights: ours.fold_rows(read, (ours.MINMOD,), weights, 4)
    )(jnp.ones(13))
    jax.effects_barrier()
    assert not nothing.any()
    assert sorted(seen) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", [n for n in NAMES if getattr(ours, n).of_products])
def test_products_of_two_vectors_have_a_short_cut(name):
    random = np.random.default_rng(4)
    a, d = random.normal(size=(B, 5)), random.normal(size=(B, 8))
    a[:, :2], d[:, :3] = np.abs(a[:, :2]), -np.abs(d[:, :3])  # all agree
    a[2, 1] = d[3, 7] = 0
    a, d = a.astype(np.float32), d.astype(np.float32)
    weights = np.array([2, 1, 0.5, 3, 1, 4, 0.25])
    rows = (a[:, :, None].astype(float) * d[:, None].astype(float)).reshape(B, -1)
    short = jax.jit(getattr(ours, name).of_products)
    got = short(jnp.asarray(a), jnp.asarray(d), jnp.asarray(weights, jnp.float32))
    check(name, got.ravel(), rows, weights, roundings=2)  # the products themselves


def test_merged_with_no_rows():
    x, y = jnp.array([1.0, jnp.nan]), jnp.array([jnp.nan, 2.0])
    both = lambda has_x, has_y: ours.merge_present(jnp.minimum, x, y, has_x, has_y)
    np.testing.assert_array_equal(both(True, False), x)
    np.testing.assert_array_equal(both(False, True), y)
    np.testing.assert_array_equal(both(False, False), y)
    np.testing.assert_array_equal(both(True, True), [np.nan, np.nan])
