"""Temporal AND-mask: against a loop, with schedules, empties and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co


def run(rule, updates, params):
    state, out, step = rule.init(params), [], jax.jit(rule.update)
    for update in updates:
        new, state = step(update, state, params)
        out.append(jax.tree.map(np.asarray, new))
    return out, state


@pytest.mark.parametrize(
    "decay", [0.8, lambda step: jnp.where(step < 3, 0.5, 0.8)], ids=["fixed", "varied"]
)
def test_equals_the_loop(decay):
    steps = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32) + 0.5
    rule = co.temporal_and_mask(decay, min_agreement=0.6)
    out, state = run(rule, list(jnp.asarray(steps)), jnp.zeros(12))
    signs, mass = np.zeros(12), 0.0
    for t, update in enumerate(steps):
        beta = (0.5 if t < 3 else 0.8) if callable(decay) else decay
        signs = beta * signs + (1 - beta) * np.sign(update)
        mass = beta * mass + 1 - beta
        mask = np.abs(signs) / mass >= 0.6 - 1e-6
        np.testing.assert_array_equal(out[t], np.where(mask, update, 0))
        assert mask.sum() > 0
    np.testing.assert_allclose(float(state.mass), mass, rtol=1e-6)
    assert float(state.consensus_ratio) == np.float32(mask.mean())


def test_the_first_update_passes_and_zeros_vote_for_nothing():
    rule = co.temporal_and_mask(0.5, 0.9)
    out, state = run(rule, [jnp.array([2.0, 0.0])], jnp.zeros(2))
    assert out[0].tolist() == [2.0, 0.0]
    assert state.signs.tolist() == [0.5, 0.0]


def test_empty_and_broken_updates_leave_no_trace():
    rule, ones = co.temporal_and_mask(), jnp.ones(2)
    _, expected = run(rule, [ones, ones], jnp.zeros(2))
    steps = [ones, 0 * ones, jnp.array([1.0, jnp.nan]), ones]
    out, state = run(rule, steps, jnp.zeros(2))
    assert not out[1].any()
    assert not out[2].any()
    assert int(state.step) == 4
    np.testing.assert_array_equal(state.signs, expected.signs)
    np.testing.assert_array_equal(state.mass, expected.mass)


def test_keeps_dtypes_and_structure():
    params = {"low": jnp.zeros(2, jnp.bfloat16), "count": jnp.zeros((), jnp.int32)}
    updates = {"low": jnp.ones(2, jnp.bfloat16), "count": jnp.zeros((), jnp.int32)}
    rule = co.temporal_and_mask()
    out, state = run(rule, [updates], params)
    assert out[0]["low"].dtype == jnp.bfloat16
    assert out[0]["count"].dtype == jnp.int32
    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert types(rule.init(params)) == types(state)


def test_state_may_be_donated():
    rule, params = co.temporal_and_mask(), jnp.zeros(2)
    update, state = jax.jit(rule.update, donate_argnums=1), rule.init(params)
    for _ in range(2):
        _, state = update(jnp.ones(2), state)
    assert int(state.step) == 2
