"""Adaptive consensus with its least coefficient subtracted."""

import numpy as np

import consensus_optax as co
from tests._pinned import LARGE, first_update


def test_equals_the_loop():
    norms = np.linalg.norm(LARGE, axis=1)
    a = LARGE @ LARGE.mean(0) / norms
    assert a.min() < 0
    a = a - a.min()
    wanted = (a / a.sum() / norms) @ LARGE
    got = first_update(co.subspace_weighting(shift_negative=True), LARGE)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_changes_nothing_where_no_coefficient_is_negative():
    rows = np.abs(LARGE)
    got = first_update(co.subspace_weighting(shift_negative=True), rows)
    wanted = first_update(co.subspace_weighting(), rows)
    np.testing.assert_array_equal(got, wanted)


def test_no_row_counts_against_its_direction():
    opposed = np.array([[5.0, 0.1], [5.0, -0.1], [-1.0, 0.0]])
    got = first_update(co.subspace_weighting(shift_negative=True), opposed)
    np.testing.assert_allclose(got, [1.0, 0.0], rtol=1e-3, atol=1e-3)
