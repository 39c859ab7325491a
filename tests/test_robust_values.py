"""Robust rules against plain loops: pinned stacks, more rows, hard arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests import _reference_robust as robust
from tests import _reference_spectral as spectral
from tests._pinned import LARGE, SMALL, first_update
from tests._reference import mean


def after_mixing(num_byzantine, rule):
    return co.after(co.nearest_neighbor_mixing(num_byzantine), rule)


def after_clipping(num_byzantine, rule):
    return co.after(co.adaptive_clipping(num_byzantine), rule)


# Rule and loop for two rows, where the bounds allow two, and for ten.
SMALL_PAIRS = {
    "median": (co.median(), robust.median),
    "trimmed mean": (co.trimmed_mean(0), robust.trimmed_mean(0)),
    "winsorized mean": (co.winsorized_mean(0.4), robust.winsorized_mean(0.4)),
    "mean around median": (co.mean_around_median(0), robust.mean_around_median(0)),
    "minimum diameter": (co.minimum_diameter(0), robust.minimum_diameter(0)),
    "smea": (co.smea(0), spectral.smea(0)),
    "caf": (co.caf(0), spectral.caf(0)),
    "monna": (co.monna(0, 1), spectral.monna(0, 1)),
    "elimination": (
        co.comparative_elimination(0),
        robust.comparative_elimination(0),
    ),
    "divide and conquer": (co.divide_and_conquer(0), spectral.divide_and_conquer(0)),
    "geometric median": (co.geometric_median(), robust.geometric_median),
    "centered clipping": (co.centered_clipping(2.0), robust.centered_clipping(2.0)),
    "trusted row": (co.trusted_row(1), robust.trusted_row(1)),
    "mixing": (
        after_mixing(0, co.median()),
        robust.nearest_neighbor_mixing(0, robust.median),
    ),
    "clipping": (after_clipping(0, co.mean()), robust.adaptive_clipping(0, mean)),
}
LARGE_PAIRS = {
    "median": (co.median(), robust.median),
    "trimmed mean": (co.trimmed_mean(2), robust.trimmed_mean(2)),
    "winsorized mean": (co.winsorized_mean(0.2), robust.winsorized_mean(0.2)),
    "mean around median": (co.mean_around_median(3), robust.mean_around_median(3)),
    "krum": (co.krum(3), robust.krum(3)),
    "multi-krum": (co.krum(2, 4), robust.krum(2, 4)),
    "bulyan": (co.bulyan(1), robust.bulyan(1)),
    "minimum diameter": (co.minimum_diameter(3), robust.minimum_diameter(3)),
    "smea": (co.smea(3), spectral.smea(3)),
    "caf": (co.caf(3), spectral.caf(3)),
    "monna": (co.monna(3, 1), spectral.monna(3, 1)),
    "elimination": (
        co.comparative_elimination(2),
        robust.comparative_elimination(2),
    ),
    "divide and conquer": (
        co.divide_and_conquer(2, 1.5),
        spectral.divide_and_conquer(2, 1.5),
    ),
    "geometric median": (co.geometric_median(), robust.geometric_median),
    "centered clipping": (
        co.centered_clipping(2.0, 4),
        robust.centered_clipping(2.0, 4),
    ),
    "trusted row": (co.trusted_row(1), robust.trusted_row(1)),
    "mixing": (
        after_mixing(2, co.krum(2)),
        robust.nearest_neighbor_mixing(2, robust.krum(2)),
    ),
    "clipping": (
        after_clipping(2, co.trimmed_mean(2)),
        robust.adaptive_clipping(2, robust.trimmed_mean(2)),
    ),
}
OF_ONE_ROW = {"trusted row", "monna"}  # which is another in another order


def weightings_of(rows):
    return np.ones(len(rows)), 0.5 + np.arange(len(rows)) % 3


@pytest.mark.slow  # a program for each; the law has the same loops on six rows
@pytest.mark.parametrize("name", SMALL_PAIRS)
def test_two_rows_equal_the_published_loops(name):
    rule, loop = SMALL_PAIRS[name]
    for weights in weightings_of(SMALL):
        wanted = np.array(loop(SMALL.tolist(), weights.tolist()))
        got = first_update(rule, SMALL, weights)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * np.abs(SMALL).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE_PAIRS)
def test_ten_rows_equal_the_published_loops(name):
    rule, loop = LARGE_PAIRS[name]
    for weights in weightings_of(LARGE):
        wanted = np.array(loop(LARGE.tolist(), weights.tolist()))
        got = first_update(rule, LARGE, weights)
        np.testing.assert_allclose(
            got, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max()
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE_PAIRS)
def test_rows_that_lie_on_a_grid_tie_in_every_order(name):
    """Many equal entries, distances and norms; sums of integers are exact."""
    rule, loop = LARGE_PAIRS[name]
    random = np.random.default_rng(11)
    rows = random.integers(-1, 2, (10, 5)).astype(float)
    rows[4] = rows[5] = rows[0]
    got = first_update(rule, rows)
    if name != "bulyan":  # of equal scores it takes the first
        for _ in range(3):
            again = first_update(rule, rows[random.permutation(10)])
            if name not in OF_ONE_ROW:
                np.testing.assert_allclose(again, got, rtol=0, atol=2e-6)
    if name != "divide and conquer":  # the top eigenvalue may be double
        wanted = loop(rows.tolist(), [1.0] * 10)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", sorted({*LARGE_PAIRS} - OF_ONE_ROW))
def test_rows_a_thousandth_apart_on_a_base_of_ten(name):
    """Distances must be right where almost all digits of the rows are equal."""
    rule, loop = LARGE_PAIRS[name]
    rows = (10 + 1e-3 * LARGE / np.abs(LARGE).max()).astype(np.float32).astype(float)
    wanted = np.array(loop(rows.tolist(), [1.0] * 10))
    got = first_update(rule, rows)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)  # two units of 10


def test_a_far_row_takes_no_digits_from_the_others():
    """Krum finds the best of the others beside a row 10^12 times as far away."""
    random = np.random.default_rng(2)
    rows = random.normal(size=(9, 30)).astype(np.float32).astype(float)
    for place in (0, 4):
        far = np.insert(rows, place, 1e12 * np.sign(rows[0]), axis=0)
        wanted = robust.krum(3)(far.tolist(), [1.0] * 10)
        np.testing.assert_allclose(first_update(co.krum(3), far), wanted, rtol=1e-6)


def test_rows_without_a_finite_square_are_as_good_as_absent():
    rows = LARGE.copy()
    rows[3] = 1e25
    for name in ("krum", "minimum diameter", "geometric median", "elimination"):
        rule, loop = LARGE_PAIRS[name]
        wanted = np.array(loop(np.delete(rows, 3, 0).tolist(), [1.0] * 9))
        got = first_update(rule, rows)
        np.testing.assert_allclose(
            got, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max()
        )


@pytest.mark.parametrize("name", sorted({*LARGE_PAIRS} - OF_ONE_ROW))
def test_absent_rows_lower_the_number_of_arbitrary_ones(name):
    """Six of ten rows, then two, then one: as the loop says of these alone."""
    rule, loop = LARGE_PAIRS[name]
    for kept in ([0, 2, 3, 5, 7, 9], [1, 4], [6]):
        weights = np.zeros(10)
        weights[kept] = 1
        wanted = np.array(loop(LARGE[kept].tolist(), [1.0] * len(kept)))
        got = first_update(rule, LARGE, weights)
        np.testing.assert_allclose(
            got, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max()
        )


def test_bulyan_of_one_row_less_than_needed():
    """Six of seven rows: f falls to 0 for the choice, so all six are chosen."""
    for absent in range(7):
        kept = np.delete(np.arange(7), absent)
        weights = np.float64(np.arange(7) != absent)
        wanted = robust.bulyan(1)(LARGE[kept].tolist(), [1.0] * 6)
        got = first_update(LARGE_PAIRS["bulyan"][0], LARGE[:7], weights)
        np.testing.assert_allclose(
            got, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max()
        )


def test_bfloat16_rows_are_summed_in_float32():
    rows = jnp.asarray(LARGE, jnp.bfloat16)
    exact = np.asarray(rows, float)
    params = jnp.zeros(5)
    for name in ("median", "krum", "geometric median", "trimmed mean"):
        rule, loop = LARGE_PAIRS[name]
        got = jax.jit(rule.update)(rows, rule.init(params), params)[0]
        wanted = np.array(loop(exact.tolist(), [1.0] * 10))
        np.testing.assert_allclose(
            got, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max()
        )
