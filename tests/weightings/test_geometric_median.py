import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import consensus_optax as co


def run(rule, rows, **extra):
    params = jnp.zeros(rows.shape[1])
    update = jax.jit(rule.update)
    return update(jnp.asarray(rows, jnp.float32), rule.init(params), params, **extra)


def test_it_minimizes_the_sum_of_distances():
    random = np.random.default_rng(0)
    for rows in (random.normal(size=(9, 4)), random.normal(size=(20, 3)) ** 3):
        weights = random.uniform(0.5, 2, len(rows))
        total = lambda z, g=rows, w=weights: w @ np.linalg.norm(g - z, axis=1)
        best = optimize.minimize(total, rows.mean(0), tol=1e-10)
        update, state = run(
            co.geometric_median(), rows, weights=jnp.asarray(weights, jnp.float32)
        )
        assert total(np.asarray(update, float)) <= best.fun * (1 + 1e-6)
        assert state.rule_state.converged
        assert state.rule_state.residual <= 1e-3


def test_one_iteration_is_not_enough_and_the_state_says_so():
    rows = np.random.default_rng(1).normal(size=(9, 4))
    rows[:4] += 100
    state = run(co.geometric_median(iterations=1), rows)[1]
    assert not state.rule_state.converged
    assert state.rule_state.residual > 1e-3


def test_half_of_the_rows_in_one_place_hold_it_there():
    rows = np.array([[1.0, 2], [1, 2], [1, 2], [50, 0], [-3, 80]])
    update, state = run(co.geometric_median(), rows)
    np.testing.assert_allclose(update, [1, 2], atol=1e-4)  # the smoothing
    assert state.rule_state.converged


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_it_converges_at_every_scale(scale):
    rows = np.random.default_rng(2).normal(size=(11, 5))
    rows[:5] += 1e6
    update, state = run(co.geometric_median(), scale * rows)
    assert state.rule_state.converged
    assert np.linalg.norm(update) <= 10 * scale


def test_the_smoothing_may_be_a_schedule():
    rows = np.random.default_rng(3).normal(size=(5, 2))
    smooth = run(co.geometric_median(lambda step: 1e3), rows)[0]
    np.testing.assert_allclose(smooth, rows.mean(0), rtol=1e-5)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"`nu` must be in \(0, inf\]; got 0"):
        co.geometric_median(0.0)
    with pytest.raises(ValueError, match="`iterations` must be at least 1; got 0"):
        co.geometric_median(iterations=0)


def update_of(rule, rows, weights=None):
    rows, params = jnp.asarray(rows, jnp.float32), jnp.zeros(rows.shape[1])
    return jax.jit(rule.update)(rows, rule.init(params), params, weights=weights)


def test_a_minority_of_weight_cannot_enlarge_the_radius():
    """Two rows of weight 10 are twenty rows; five others are far away."""
    far = np.array([[1e6], [2.1e6], [3.3e6], [4.6e6], [6e6]])
    near, rule = np.array([[0.0], [1.0]]), co.geometric_median()
    weights = jnp.array([10.0, 10, 1, 1, 1, 1, 1])
    update, _ = update_of(rule, np.concatenate([near, far]), weights)
    copies, _ = update_of(rule, np.concatenate([np.repeat(near, 10, 0), far]))
    # Iterations start elsewhere, and end where the smoothing, 1e-4 of r, is felt.
    np.testing.assert_allclose(update, copies, atol=1e-3)
    bound = 2 * (25 - 5) / (25 - 10) * 0.5  # of the docstring; the honest mean is 0.5
    assert abs(update[0] - 0.5) <= bound


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_where_most_of_the_weight_is_in_one_place_that_is_it(size):
    rows = size * np.array([[1.0, 2.0], [3.0, -1.0], [-4.0, 9.0]])
    update, state = update_of(co.geometric_median(), rows, jnp.array([5.0, 2, 2]))
    np.testing.assert_allclose(update, rows[0], rtol=1e-6)
    assert state.rule_state.converged
