"""Rows compared with the previous update, over several steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co


def loop(steps, max_distance, temperature=None):
    """The same in NumPy: a list of updates and of accepted counts."""
    previous, updates, accepted = np.zeros(steps.shape[2]), [], []
    for rows in steps:
        length, gates = np.linalg.norm(previous), []
        for g in rows:
            if length == 0:
                gates.append(1.0)
                continue
            far = 1 - g @ previous / (np.linalg.norm(g) * length)
            if temperature is None:
                gates.append(float(far <= max_distance))
            else:
                gates.append(1 / (1 + np.exp(-(max_distance - far) / temperature)))
        update, mass = np.zeros(steps.shape[2]), 0.0
        for g, gate in zip(rows, gates, strict=True):
            mass += gate
            update += gate * g
        update = update / mass if mass else update
        updates.append(update)
        accepted.append(sum(gates))
        previous = update
    return updates, accepted


@pytest.mark.parametrize("temperature", [None, 0.3])
def test_equals_the_loop(temperature):
    random = np.random.default_rng(2)
    steps = (random.normal(size=(5, 6, 4)) + 0.4).astype(np.float32)
    rule = co.previous_update_filter(0.8, temperature=temperature)
    params = jnp.zeros(4)
    state, update = rule.init(params), jax.jit(rule.update)
    wanted, counts = loop(steps.astype(np.float64), 0.8, temperature)
    for rows, expected, count in zip(steps, wanted, counts, strict=True):
        got, state = update(jnp.asarray(rows), state, params)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        assert abs(float(state.rule_state.rule_state.accepted) - count) < 1e-4
    assert 0 < counts[-1] < 6


def test_an_outlier_in_first_place_rejects_nobody_else():
    rule, params = co.previous_update_filter(0.5), jnp.zeros(2)
    good = jnp.array([[1.0, 0.1], [1.0, -0.1], [1.0, 0.0]])
    _, state = jax.jit(rule.update)(good, rule.init(params), params)
    update, state = jax.jit(rule.update)(good.at[0].multiply(-1), state, params)
    np.testing.assert_allclose(update, [1.0, -0.05], rtol=1e-6)
    assert float(state.rule_state.rule_state.accepted) == 2


def test_after_nobody_passed_all_do():
    rule, params = co.previous_update_filter(0.5), jnp.zeros(1)
    ahead, back = jnp.ones((2, 1)), -jnp.ones((2, 1))
    _, state = jax.jit(rule.update)(ahead, rule.init(params), params)
    update, state = jax.jit(rule.update)(back, state, params)
    assert not update.any()
    assert not state.consensus_ready
    update, state = jax.jit(rule.update)(back, state, params)
    assert update.tolist() == [-1.0]


def test_each_leaf_remembers_its_own():
    rule = co.per_leaf(co.previous_update_filter(0.5))
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    rows = {"a": jnp.array([[1.0], [1.0]]), "b": jnp.array([[1.0], [2.0]])}
    _, state = jax.jit(rule.update)(rows, rule.init(params), params)
    turned = {"a": jnp.array([[-1.0], [3.0]]), "b": rows["b"]}
    update, state = jax.jit(rule.update)(turned, state, params)
    assert float(update["a"][0]) == 3.0
    assert float(update["b"][0]) == 1.5
    assert state.rule_state.rule_state.accepted.tolist() == [1.0, 2.0]


def test_a_zero_row_passes_only_where_there_is_nothing_to_compare_with():
    rule, params = co.previous_update_filter(2.0), jnp.zeros(1)
    rows = jnp.array([[0.0], [4.0]])
    update, state = rule.update(rows, rule.init(params), params)
    assert update.tolist() == [2.0]
    assert rule.update(rows, state, params)[0].tolist() == [4.0]
