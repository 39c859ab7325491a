"""Rows of smallest loss: pinned values, absent rows, schedules, as a selector."""

import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests import _reference_agreement
from tests._pinned import LARGE, SMALL, first_update

VALUES = np.random.default_rng(4).permutation(10).astype(np.float32)


@pytest.mark.parametrize("rows", [SMALL, LARGE])
@pytest.mark.parametrize("num_kept", [1, 4, 99])
def test_equals_the_loop(rows, num_kept):
    weights, values = 0.5 + np.arange(len(rows)), VALUES[: len(rows)]
    rule = co.keep_smallest_losses(num_kept)
    got = first_update(rule, rows, weights, values=jnp.asarray(values))
    reference = _reference_agreement.keep_smallest_losses(num_kept, values)
    wanted = reference(rows.tolist(), weights.tolist())
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_absent_rows_and_losses_that_are_not_finite_take_no_place():
    rows = np.array([[1.0], [2.0], [4.0], [8.0]])
    values = jnp.array([0.0, jnp.nan, 5.0, 6.0])
    rule = co.keep_smallest_losses(2)
    got = first_update(rule, rows, [0, 1, 1, 1], values=values)
    assert got == [6.0]


def test_a_schedule_lowers_the_number():
    rule = co.keep_smallest_losses(lambda step: 3 - step)
    rows, params = jnp.array([[1.0], [2.0], [6.0]]), jnp.zeros(1)
    state, updates = rule.init(params), []
    for _ in range(3):
        update, state = rule.update(rows, state, params, values=rows[:, 0])
        updates.append(float(update[0]))
    assert updates == [3.0, 1.5, 1.0]


def test_selects_for_another_rule():
    rule = co.among(co.keep_smallest_losses(2), co.sign_consensus())
    rows = np.array([[3.0], [1.0], [-5.0]])
    assert first_update(rule, rows, values=jnp.array([1.0, 2.0, 3.0])) == [1.0]


def test_missing_or_misshapen_losses_are_errors():
    rule = co.keep_smallest_losses(1)
    with pytest.raises(ValueError, match="`values` must be the losses of the rows"):
        first_update(rule, SMALL)
    with pytest.raises(ValueError, match=r"`values` must have shape \(2,\)"):
        first_update(rule, SMALL, values=jnp.ones(3))
    with pytest.raises(ValueError, match=r"`values` must be an array \(B,\).*a dict"):
        first_update(rule, SMALL, values={"fit": 1.0, "size": 2.0})
