"""Rolling median of three: values, what is not remembered, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np

import consensus_optax as co


def run(updates, params):
    rule = co.median_of_three_steps()
    state, out, step = rule.init(params), [], jax.jit(rule.update)
    for update in updates:
        new, state = step(update, state, params)
        out.append(jax.tree.map(np.asarray, new))
    return out, state


def test_is_the_median_of_the_last_three():
    steps = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
    out, _ = run(list(jnp.asarray(steps)), jnp.zeros((4, 3)))
    np.testing.assert_array_equal(out[0], steps[0])
    np.testing.assert_allclose(out[1], steps[:2].mean(0), rtol=1e-6, atol=1e-7)
    for t in range(2, 6):
        np.testing.assert_array_equal(out[t], np.median(steps[t - 2 : t + 1], axis=0))


def test_empty_and_broken_updates_leave_no_trace():
    steps = [jnp.array([x]) for x in (1.0, 3.0, 0.0, jnp.nan, 2.0)]
    out, state = run(steps, jnp.zeros(1))
    assert [float(x[0]) for x in out] == [1.0, 2.0, 0.0, 0.0, 2.0]
    assert int(state.seen) == 3


def test_one_broken_leaf_breaks_the_update():
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    out, state = run([{"a": jnp.ones(1), "b": jnp.array([jnp.inf])}], params)
    assert not out[0]["a"].any()
    assert int(state.seen) == 0


def test_keeps_dtypes_and_leaves_without_gradient():
    params = {"low": jnp.zeros(2, jnp.bfloat16), "count": jnp.zeros((), jnp.int32)}
    updates = {"low": jnp.ones(2, jnp.bfloat16), "count": jnp.zeros((), jnp.int32)}
    out, state = run([updates], params)
    assert out[0]["low"].dtype == jnp.bfloat16
    assert out[0]["count"].dtype == jnp.int32
    assert state.last["low"].dtype == jnp.float32
    initial = co.median_of_three_steps().init(params)
    assert jax.tree.structure(initial) == jax.tree.structure(state)


def test_state_may_be_donated():
    rule, params = co.median_of_three_steps(), jnp.zeros(2)
    update, state = jax.jit(rule.update, donate_argnums=1), rule.init(params)
    for _ in range(3):
        _, state = update(jnp.ones(2), state)
    assert int(state.seen) == 3
