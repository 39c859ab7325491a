"""SAND-mask: pinned values, limits, and the published default that masks everything."""

import numpy as np
import pytest

import consensus_optax as co
from tests import _pinned, _reference_agreement
from tests._pinned import first_update


@pytest.mark.parametrize(
    ("k", "gamma", "threshold", "rescale"),
    [(10.0, 1.0, 0.5, True), (0.1, 2.0, 0.2, False), (1.0, 1.0, 0.0, True)],
)
def test_equals_the_loop(k, gamma, threshold, rescale):
    rule = co.sand_mask(k, gamma, threshold, rescale)
    reference = _reference_agreement.sand_mask(k, gamma, threshold, rescale)
    _pinned.check(rule, reference, rtol=3e-6)  # a variance is squared


def test_rows_that_agree_to_a_thousandth_keep_their_variance():
    """Rounding of a row over the rows' distance, twice since it is squared."""
    noise = np.random.default_rng(3).normal(size=(8, 50))
    rows = np.float64(np.float32(10 * (1 + 1e-3 * noise)))
    wanted = _reference_agreement.sand_mask(1e-4, 1.0, 0.5, False)
    wanted = np.array(wanted(rows.tolist(), [1.0] * 8))
    got = first_update(co.sand_mask(1e-4, 1.0, 0.5, False), rows)
    bound = 4 * np.finfo(np.float32).eps / 1e-3
    np.testing.assert_allclose(got, wanted, rtol=bound)
    assert 0.1 < np.median(wanted) < 9  # the mask is between its ends


def test_is_the_and_mask_for_small_gradients():
    rows = 1e-4 * _pinned.LARGE
    sand = first_update(co.sand_mask(min_agreement=0.35, rescale=False), rows)
    mask = first_update(co.sign_consensus(quorum=0.7, magnitude="mean"), rows)
    np.testing.assert_allclose(sand, mask, rtol=1e-6)  # |agreement| 0.4 is 7 of 10
    assert 0 < np.count_nonzero(mask) < mask.size


def test_equal_rows_are_their_mean():
    rows = np.tile([[3.0, -1e-3, 0.0, 7e3]], (5, 1))
    np.testing.assert_allclose(
        first_update(co.sand_mask(rescale=False), rows), rows[0], rtol=1e-6
    )


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_is_finite_at_any_scale(scale):
    update = first_update(co.sand_mask(), scale * _pinned.LARGE)
    assert np.isfinite(update).all()
    assert update.any()


def test_the_published_threshold_is_refused():
    with pytest.raises(ValueError, match=r"`min_agreement` must be in \[0, 1\); got 1"):
        co.sand_mask(min_agreement=1.0)
