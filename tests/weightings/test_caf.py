import numpy as np
import pytest

import consensus_optax as co
from tests import _reference_spectral as spectral
from tests._pinned import LARGE, first_update

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("far", [1e3, 1e10])
def test_it_ends_and_drops_a_row_however_far(far):
    """Published code compares with that row for ever, and no other count changes."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(8, 5)).astype(np.float32).astype(float)
    for place in (0, 7):
        spoilt = rows.copy()
        spoilt[place] = far
        wanted = spectral.caf(2)(spoilt.tolist(), [1.0] * 8)
        got = first_update(co.caf(2), spoilt)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)  # of about 1
        honest = np.delete(rows, place, 0)
        assert np.abs(got - honest.mean(0)).max() <= np.ptp(honest, 0).max()


def test_directions_of_equal_spread_are_taken_together():
    """Two triangles: no direction of their plane is wider than another."""
    angles = 2 * np.pi * np.arange(3) / 3
    triangle = lambda turn: np.stack([np.cos(angles + turn), np.sin(angles + turn)], 1)
    triangles = np.concatenate([3 * triangle(0.4), triangle(1.0)])
    rows = triangles + np.array([2.0, 1.0])
    random = np.random.default_rng(1)
    for _ in range(4):
        got = first_update(co.caf(2), rows[random.permutation(6)])
        np.testing.assert_allclose(got, [2, 1], rtol=0, atol=1e-5)


def test_the_counts_of_least_variance_are_kept_not_the_last():
    """Fewer rows may spread more."""
    random = np.random.default_rng(6)
    for _ in range(10):
        rows = random.normal(size=(6, 5)).astype(np.float32).astype(float)
        wanted = spectral.caf(2)(rows.tolist(), [1.0] * 6)
        got = first_update(co.caf(2), rows)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)  # of about 1


def test_far_rows_on_both_sides_are_dropped_where_their_difference_is_infinite():
    random = np.random.default_rng(2)
    rows = random.normal(size=(8, 5)).astype(np.float32).astype(float)
    rows[0], rows[1] = 0, 0
    rows[0, 0], rows[1, 0] = 1.8e19, -1.7e19
    got = first_update(co.caf(2), rows)
    assert np.abs(got - rows[2:].mean(0)).max() <= np.ptp(rows[2:], 0).max()


def test_counts_are_graded_not_only_zero_and_one():
    rows = np.array([[0.0], [1.0], [2.0], [4.0], [100.0]])
    # 1: the mean 21.4; squared deviations over the largest, 78.6^2.
    counts = 1 - (rows[:, 0] - 21.4) ** 2 / 78.6**2
    # 2: less spread, and above n - 2f = 1; then the mean of what counts most.
    got = first_update(co.caf(2), rows)
    wanted = spectral.caf(2)(rows.tolist(), [1.0] * 5)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    one = first_update(co.caf(1), rows)
    center = counts @ rows[:, 0] / counts.sum()
    left = counts * (1 - (rows[:, 0] - center) ** 2 / (4 - center) ** 2)
    assert counts.sum() > 3 >= left.sum()
    np.testing.assert_allclose(one, [center], rtol=1e-6)


def test_is_the_same_at_any_scale():
    """From where squares are 1e-30 to where those of differences would be infinite."""
    wanted = first_update(co.caf(2), LARGE)
    for scale in (2.0**-50, 2.0**58):
        got = first_update(co.caf(2), scale * LARGE)
        np.testing.assert_allclose(got, scale * wanted, rtol=0, atol=1e-5 * scale)
