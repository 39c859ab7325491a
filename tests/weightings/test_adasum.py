"""AdaSum: pinned values, orthogonal and parallel rows, absent rows, cancellation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests import _pinned, _reference_agreement
from tests._pinned import LARGE, first_update


@pytest.mark.parametrize("rule", [co.adasum(), co.per_leaf(co.adasum())], ids=repr)
def test_equals_the_loop(rule):
    # Coefficients are read from float32 inner products, level upon level.
    _pinned.check(rule, _reference_agreement.adasum, rtol=1e-5)


def test_orthogonal_rows_add_up_and_equal_rows_do_not():
    np.testing.assert_allclose(first_update(co.adasum(), np.eye(7)), np.ones(7))
    equal = np.tile([[3.0, -1.0]], (7, 1))
    np.testing.assert_allclose(first_update(co.adasum(), equal), equal[0], rtol=1e-6)


def test_each_leaf_by_itself():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    rows = {"a": jnp.eye(2), "b": jnp.ones((2, 1))}
    rule = co.per_leaf(co.adasum())
    update, _ = jax.jit(rule.update)(rows, rule.init(params), params)
    assert update["a"].tolist() == [1.0, 1.0]
    assert update["b"].tolist() == [1.0]


def test_absent_rows_do_not_shift_the_tree():
    rows = np.full((14, 5), np.nan)
    places = [0, 1, 3, 4, 5, 7, 9, 10, 12, 13]
    rows[places] = LARGE
    weights = np.isfinite(rows[:, 0]).astype(float)
    wanted = first_update(co.adasum(), LARGE)
    got = first_update(co.adasum(), rows, weights)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_what_cancels_stays_small():
    rows = np.array([[1.0, 2.0], [-1.0, -2.0], [1e8, 0.0], [0.0, 1.0]])
    update = first_update(co.adasum(), rows)
    np.testing.assert_allclose(update, [1e8, 1.0], rtol=1e-6)
