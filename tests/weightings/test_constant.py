import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests._pinned import LARGE, first_update
from tests._reference_task_weights import constant

COEFFICIENTS = [3, 1, 2, 0.5, 0, 1, 2, 4, 0.1, 1]


def test_equals_the_loop_with_and_without_weights():
    for weights in (np.ones(10), 0.5 + np.arange(10) % 3):
        for given in (COEFFICIENTS, jnp.asarray(COEFFICIENTS)):
            got = first_update(co.constant(given), LARGE, weights)
            wanted = constant(COEFFICIENTS)(LARGE.tolist(), weights.tolist())
            np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)  # of about 100


def test_an_absent_row_leaves_the_others_as_they_are():
    weights = np.float64(np.arange(10) != 7)
    wanted = np.delete(np.array(COEFFICIENTS), 7) @ np.delete(LARGE, 7, 0)
    got = first_update(co.constant(COEFFICIENTS), LARGE, weights)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


def test_coefficients_are_checked():
    for wrong in ([1.0, -1.0], [], [[1.0]], "high", [np.nan, 1.0]):
        with pytest.raises(ValueError, match="`coefficients` must be a vector of numb"):
            co.constant(wrong)
    with pytest.raises(ValueError, match=r"`coefficients` must have .*\(10,\); got"):
        first_update(co.constant([1.0, 2.0]), LARGE)


def test_ones_give_the_plain_sum_and_zeros_nothing():
    total = first_update(co.constant([1.0] * 10), LARGE)
    np.testing.assert_allclose(total, LARGE.sum(0), rtol=0, atol=2e-5)
    rule, params = co.constant([0.0, 2.0]), jnp.zeros(3)
    rows, state = jnp.ones((2, 3)), rule.init(params)
    for weights, wanted in (([1.0, 0.0], 0.0), ([0.0, 1.0], 2.0)):
        update, new = rule.update(rows, state, params, weights=jnp.array(weights))
        assert (update == wanted).all()
        assert new.consensus_ready == (wanted > 0)
