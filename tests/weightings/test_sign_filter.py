"""Sign agreement between rows: pinned values, shares, lazy and low-precision rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests import _pinned, _reference_agreement
from tests._pinned import first_update


@pytest.mark.parametrize("threshold", [0.45, 0.5, 0.55])
def test_equals_the_loop(threshold):
    reference = _reference_agreement.sign_filter(threshold)
    _pinned.check(co.sign_filter(threshold), reference)


def test_state_is_the_share_of_agreeing_signs():
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(4, 50))
    rule, params = co.sign_filter(), jnp.zeros(50)
    rows = jnp.asarray(signs * np.geomspace(1e-3, 1e3, 4)[:, None], jnp.float32)
    _, state = jax.jit(rule.update)(rows, rule.init(params), params)
    pairs = (signs[:, None] == signs[None]).mean(-1)
    shares = (pairs.sum(1) - 1) / 3
    np.testing.assert_allclose(
        state.rule_state.agreement_mean, shares.mean(), rtol=1e-5
    )
    np.testing.assert_allclose(state.rule_state.agreement_min, shares.min(), rtol=1e-5)


def test_a_flipped_row_is_left_out_however_long():
    rows = np.random.default_rng(1).normal(size=(6, 40)) + 1
    rows[2] *= -1e4
    update = first_update(co.sign_filter(), rows)
    np.testing.assert_allclose(update, np.delete(rows, 2, 0).mean(0), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vectors", "sums of vectors", "look-ups"])
def test_lazy_and_low_precision_rows(kind):
    random = np.random.default_rng(3)
    normal = lambda dtype, *shape: jnp.asarray(random.normal(size=shape), dtype)
    terms = 2 if kind == "sums of vectors" else 1
    left, right = normal(jnp.float32, 5, terms, 3), normal(jnp.float32, 5, terms, 4)
    if kind == "look-ups":
        left = jnp.array([[0], [2], [2], [3], [1]])  # 3 is outside of the table
    lazy = co.OuterProduct(left, right, row_shape=(3, 4))
    low = normal(jnp.bfloat16, 5, 7)
    params = {"lazy": jnp.zeros((3, 4)), "low": jnp.zeros(7)}
    rule = co.sign_filter()
    got, state = jax.jit(rule.update)(
        {"lazy": lazy, "low": low}, rule.init(params), params
    )
    plain = {"lazy": lazy.materialize(), "low": low.astype(jnp.float32)}
    wanted, expected = jax.jit(rule.update)(plain, rule.init(params), params)
    np.testing.assert_allclose(got["lazy"], wanted["lazy"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["low"], wanted["low"], rtol=1e-6)
    assert state.rule_state == expected.rule_state
