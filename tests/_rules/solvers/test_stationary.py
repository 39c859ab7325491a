"""Stationary points over the simplex: trial of all supports, and their conditions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax._rules.solvers import stationary_on_simplex


@jax.jit
def solved(slopes, hessians):
    start = jnp.full_like(slopes, 1 / slopes.shape[1])
    return jax.vmap(stationary_on_simplex)(slopes, hessians, start)


def models(b, least, count=40, seed=0):
    """Slopes and Hessians whose eigenvalues are drawn from ``least`` to 1."""
    rng = np.random.default_rng(seed)
    slopes, hessians = rng.normal(size=(count, b)), []
    for _ in range(count):
        axes, _ = np.linalg.qr(rng.normal(size=(b, b)))
        hessians.append(axes * rng.uniform(least, 1, b) @ axes.T)
    return np.float32(0.3 * slopes), np.float32(hessians)


def value(slope, hessian, x):
    return slope @ x + x @ hessian @ x / 2


def least(slope, hessian):
    """The minimum: on every support, where the slopes are equal (if that is inside)."""
    b, best = len(slope), np.inf
    for size in range(1, b + 1):
        for support in map(list, itertools.combinations(range(b), size)):
            ones = np.ones((size, 1))
            inner = hessian[np.ix_(support, support)]
            system = np.block([[inner, ones], [ones.T, np.zeros((1, 1))]])
            answer = np.linalg.lstsq(system, np.append(-slope[support], 1))[0]
            x = np.zeros(b)
            x[support] = answer[:-1]
            if (x >= -1e-12).all() and abs(x.sum() - 1) < 1e-9:
                best = min(best, value(slope, hessian, x))
    return best


@pytest.mark.parametrize("lowest", [0.0, 0.2])
def test_without_negative_curvature_it_is_the_minimum(lowest):
    slopes, hessians = models(6, lowest)
    weights, state = solved(slopes, hessians)
    assert state.converged.all()
    for slope, hessian, x in zip(slopes, hessians, weights, strict=True):
        slope, hessian, x = (np.float64(z) for z in (slope, hessian, x))
        assert value(slope, hessian, x) <= least(slope, hessian) + 1e-5


@pytest.mark.parametrize("b", [2, 6, 20])
def test_with_negative_curvature_it_is_stationary_and_no_worse_than_the_start(b):
    slopes, hessians = models(b, -1.0, seed=b)
    weights, state = solved(slopes, hessians)
    assert state.converged.all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    for slope, hessian, x in zip(slopes, hessians, weights, strict=True):
        slope, hessian, x = (np.float64(z) for z in (slope, hessian, x))
        gradient = slope + hessian @ x
        assert (x @ gradient - gradient).max() <= 2e-5
        mean = np.full(b, 1 / b)
        assert value(slope, hessian, x) <= value(slope, hessian, mean) + 1e-6


def test_a_plane_is_lowest_at_a_corner():
    slope = jnp.array([0.5, -0.25, 1.0])
    start = jnp.full(3, 1 / 3)
    weights, state = stationary_on_simplex(slope, jnp.zeros((3, 3)), start)
    np.testing.assert_allclose(weights, [0, 1, 0], atol=1e-5)
    assert state.converged


def test_absent_rows_have_no_weight_and_nobody_has_none():
    slopes, hessians = models(5, -1.0, count=1)
    there = np.array([True, True, False, True, False])
    hessian = np.where(there[:, None] & there, hessians[0], 0)
    slope = np.where(there, slopes[0], 0)
    start = jnp.asarray(np.float32(there / 3))
    weights, _ = stationary_on_simplex(slope, jnp.asarray(hessian), start)
    assert not np.asarray(weights)[~there].any()
    few = np.ix_(there, there)
    alone, _ = stationary_on_simplex(
        slope[there], jnp.asarray(hessian[few]), jnp.full(3, 1 / 3)
    )
    np.testing.assert_allclose(np.asarray(weights)[there], alone, atol=1e-4)
    nobody, _ = stationary_on_simplex(0 * slope, jnp.zeros((5, 5)), jnp.zeros(5))
    np.testing.assert_array_equal(nobody, 0)
