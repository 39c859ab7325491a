"""Pairwise neighbours: pinned values, outliers anywhere, order."""

import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests import _pinned, _reference_agreement
from tests._pinned import LARGE, first_update


@pytest.mark.parametrize("threshold", [0.3, 0.97])
def test_equals_the_loop(threshold):
    reference = _reference_agreement.neighbor_filter(threshold)
    _pinned.check(co.neighbor_filter(threshold), reference)


def test_an_outlier_in_first_place_costs_nothing():
    """It makes the cosine filter reject everybody."""
    rows = np.array([[-9.0, 0.0], [1.0, 0.2], [1.0, -0.2], [1.0, 0.0]])
    update = first_update(co.neighbor_filter(0.5), rows)
    np.testing.assert_allclose(update, [1, 0], atol=1e-6)
    assert not first_update(co.cosine_filter(0.5), rows).any()


def test_order_is_irrelevant_without_ties():
    rule = co.neighbor_filter(0.5)
    wanted = first_update(rule, LARGE)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(10)
        got = first_update(rule, LARGE[order])
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_weights_are_votes():
    rows = np.array([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]])
    ahead = first_update(co.neighbor_filter(0.5), rows, [2, 1, 1, 1])
    back = first_update(co.neighbor_filter(0.5), rows, [1, 1, 2, 1])
    assert ahead[0] == 1
    assert back[0] == -1


def test_rows_without_neighbours_give_nothing():
    assert not first_update(co.neighbor_filter(0.5), np.eye(3)).any()
    assert not first_update(co.neighbor_filter(2.0), np.zeros((3, 2))).any()
    assert not first_update(co.neighbor_filter(2.0), np.ones((1, 2))).any()


@pytest.mark.slow
def test_a_rows_own_weight_is_a_vote_for_its_group():
    """As of so many equal rows: 11 against 12, where others alone are 10 against 6."""
    rows = np.array([[1.0, 0, 0, 0], [1, 0.01, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0.01]])
    counts = [10, 1, 6, 6]
    rule, params = co.neighbor_filter(0.5), jnp.zeros(4)
    given = lambda rows: (jnp.asarray(rows, jnp.float32), rule.init(params), params)
    update, _ = rule.update(*given(rows), weights=jnp.array(counts, jnp.float32))
    copies, _ = rule.update(*given(np.repeat(rows, counts, 0)))
    np.testing.assert_allclose(update, rows[2:].mean(0), rtol=1e-6)
    np.testing.assert_allclose(copies, update, rtol=1e-6)
