import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests._reference_robust import clipped_step


def test_it_starts_where_the_last_step_ended():
    random = np.random.default_rng(0)
    rule, params = co.centered_clipping(1.5, 2), jnp.zeros(4)
    state, v = rule.init(params), [0.0] * 4
    update = jax.jit(rule.update)
    for _ in range(5):
        rows = (3 + random.normal(size=(6, 4))).astype(np.float32)
        weights = random.uniform(0.5, 2, 6).astype(np.float32)
        got, state = update(jnp.asarray(rows), state, params, weights=weights)
        for _ in range(2):
            v = clipped_step(v, rows.tolist(), weights.tolist(), 1.5)
        np.testing.assert_allclose(got, v, rtol=1e-5)


def test_no_step_is_longer_than_the_limit():
    rule, params = co.centered_clipping(0.5), jnp.zeros(3)
    rows = 1e6 * jnp.ones((4, 3))
    update, state = jax.jit(rule.update)(rows, rule.init(params), params)
    np.testing.assert_allclose(np.linalg.norm(update), 0.5, rtol=1e-6)
    assert state.rule_state.rule_state.clipped_share == 1


def test_a_wide_limit_is_the_mean():
    rows = jnp.array([[1.0, 5.0], [3.0, -1.0]])
    rule, params = co.centered_clipping(lambda step: 1e3), jnp.zeros(2)
    update, state = jax.jit(rule.update)(rows, rule.init(params), params)
    np.testing.assert_allclose(update, [2, 2], rtol=1e-6)
    assert state.rule_state.rule_state.clipped_share == 0


def test_arguments_are_checked():
    message = r"`max_distance` must be in \(0, inf\]; got -1"
    with pytest.raises(ValueError, match=message):
        co.centered_clipping(-1)
    with pytest.raises(ValueError, match="`iterations` must be an integer"):
        co.centered_clipping(1.0, 2.5)
