"""Worker momentum: its recursion, rows that are away or broken, lazy rows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co


def test_follows_its_recursion():
    steps = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    rule, params, momentum = co.row_momentum(0.7, 4), jnp.zeros(2), np.zeros((4, 2))
    state = rule.init(params)
    for rows in steps:
        out, state = rule.update(jnp.asarray(rows), state, params)
        momentum = 0.7 * momentum + 0.3 * rows
        np.testing.assert_allclose(out, momentum, rtol=1e-5)


def test_zero_decay_changes_nothing():
    rows = jnp.array([[1.0, -2.0], [3.0, 4.0]])
    rule, params = co.row_momentum(0.0, 2), jnp.zeros(2)
    out, _ = rule.update(rows, rule.init(params), params)
    np.testing.assert_array_equal(out, rows)


def test_a_row_that_is_away_keeps_its_momentum():
    rule, params = co.row_momentum(0.5, 2), jnp.zeros(1)
    rows, state = jnp.array([[4.0], [4.0]]), rule.init(params)
    weights = jnp.array([1.0, 0.0])
    _, state = rule.update(rows, state, params, weights=weights)
    assert state.rule_state.momentum.tolist() == [[2.0], [0.0]]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_broken_row_goes_out_broken_and_leaves_no_trace(bad):
    tx = optax.chain(co.row_momentum(0.5, 2), co.mean())
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    rows = {"a": jnp.array([[4.0], [4.0]]), "b": jnp.array([[1.0], [bad]])}
    updates, state = tx.update(rows, tx.init(params), params)
    assert float(updates["a"][0]) == 2.0
    assert int(optax.tree.get(state, "num_nonfinite")) == 1
    momentum = optax.tree.get(state, "momentum")["a"]
    assert momentum.tolist() == [[2.0], [0.0]]
    sound = jax.tree.map(jnp.ones_like, rows)
    updates, state = tx.update(sound, state, params)
    assert np.isfinite(updates["b"]).all()
    assert int(optax.tree.get(state, "num_nonfinite")) == 0


def test_lazy_rows_and_low_precision():
    a, d = jnp.ones((2, 1, 2)), jnp.ones((2, 1, 3))
    rows = {
        "w": co.OuterProduct(a, d, row_shape=(2, 3)),
        "low": jnp.ones((2, 2), jnp.bfloat16),
        "count": jnp.ones((2,), jnp.int32),
    }
    params = {
        "w": jnp.zeros((2, 3)),
        "low": jnp.zeros(2, jnp.bfloat16),
        "count": jnp.zeros((), jnp.int32),
    }
    rule = co.row_momentum(0.5, 2)
    out, state = rule.update(rows, rule.init(params), params)
    np.testing.assert_array_equal(out["w"], np.full((2, 2, 3), 0.5))
    assert out["low"].dtype == jnp.bfloat16
    moving = [state.rule_state.momentum[name] for name in ("w", "low")]
    assert [x.dtype for x in moving] == [jnp.float32] * 2
    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert types(rule.init(params)) == types(state)


def test_another_number_of_rows_is_an_error():
    rule, params = co.row_momentum(0.5, 3), jnp.zeros(1)
    with pytest.raises(ValueError, match="`num_rows` must be the number of rows"):
        rule.update(jnp.ones((2, 1)), rule.init(params), params)


def test_state_may_be_donated():
    rule, params = co.row_momentum(0.5, 2), jnp.zeros(2)
    update, state = jax.jit(rule.update, donate_argnums=1), rule.init(params)
    for _ in range(2):
        _, state = update(jnp.ones((2, 2)), state)
    momentum = state.rule_state.momentum
    np.testing.assert_array_equal(momentum, np.full((2, 2), 0.75))
