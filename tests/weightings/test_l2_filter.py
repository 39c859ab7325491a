"""Distance filter: pinned values, shift, scale, nearly equal rows."""

import numpy as np
import pytest

import consensus_optax as co
from tests import _pinned, _reference_agreement
from tests._pinned import LARGE, first_update


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["medoid", "mean"])
@pytest.mark.parametrize(("limit", "relative"), [(1.1, True), (4.0, False)])
def test_equals_the_loop(reference, limit, relative):
    rule = co.l2_filter(limit, reference, relative)
    loop = _reference_agreement.l2_filter(limit, reference, relative)
    _pinned.check(rule, loop)


def test_an_outlier_cannot_drag_the_medoid():
    near, far = LARGE.copy(), LARGE.copy()
    near[3], far[3] = 1e3, 1e12
    update = first_update(co.l2_filter(), near)
    assert 0 < np.abs(update).max() < 5
    np.testing.assert_allclose(first_update(co.l2_filter(), far), update, rtol=1e-5)


def test_shifting_the_rows_shifts_the_update():
    """Rows 1e-3 apart on a base of 100: the digits that a plain Gramian loses."""
    rows = np.float32(100 + 1e-3 * LARGE).astype(np.float64)
    got = first_update(co.l2_filter(), rows) - 100
    wanted = _reference_agreement.l2_filter(2.0, "medoid", relative=True)(
        (rows - 100).tolist(), [1.0] * 10
    )
    np.testing.assert_allclose(got, wanted, atol=2e-5)  # two units of 100 in float32


def test_equal_rows_and_a_single_row_pass():
    for rows in (np.full((4, 3), 7.0), np.full((1, 3), 7.0)):
        assert first_update(co.l2_filter(), rows).tolist() == [7.0] * 3


def test_nobody_near_the_mean_gives_nothing():
    rule = co.l2_filter(0.5, "mean", relative=False)
    assert not first_update(rule, np.array([[1.0], [-1.0]])).any()
