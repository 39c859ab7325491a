import jax
import jax.numpy as jnp
import numpy as np

import consensus_optax as co
from tests._reference_task_weights import random_weights

KEY = jax.random.key(3)
COUNT, STEPS = 4, 2000


def drawn(rule, weights, steps=STEPS):
    """The weights of rows that are unit vectors, step by step."""
    params = jnp.zeros(COUNT)

    def step(state, _):
        update, state = rule.update(jnp.eye(COUNT), state, params, weights=weights)
        return state, update

    run = jax.jit(lambda: jax.lax.scan(step, rule.init(params), length=steps)[1])
    return np.asarray(run())


def test_every_step_draws_anew_what_the_loop_draws():
    got = drawn(co.random_weights(KEY), jnp.ones(COUNT), steps=3)
    for step, update in enumerate(got):
        wanted = random_weights(KEY, step)(np.eye(COUNT).tolist(), [1.0] * COUNT)
        np.testing.assert_allclose(update, wanted, rtol=1e-5)


def test_the_mean_in_expectation():
    """Standard errors: a weight's deviation is below 0.25 over sqrt(2000), 0.0056."""
    got = drawn(co.random_weights(KEY), jnp.ones(COUNT))
    np.testing.assert_allclose(got.mean(0), 1 / COUNT, atol=5 * 0.0056)
    assert got.std(0).min() > 0.1


def test_absent_rows_take_no_part_and_weights_multiply():
    some = drawn(co.random_weights(KEY), jnp.array([1.0, 0, 1, 1]), steps=50)
    three = drawn(co.random_weights(KEY), jnp.array([1.0, 1, 1, 0]), steps=50)
    assert not some[:, 1].any()
    np.testing.assert_array_equal(some[:, [0, 2, 3]], three[:, :3])
    plain = drawn(co.random_weights(KEY), jnp.ones(COUNT), steps=50)
    double = drawn(co.random_weights(KEY), jnp.array([2.0, 1, 1, 1]), steps=50)
    np.testing.assert_allclose(
        double[:, 0] / double[:, 1], 2 * plain[:, 0] / plain[:, 1], rtol=1e-5
    )
