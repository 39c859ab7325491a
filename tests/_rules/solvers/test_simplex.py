"""Minimisation over the simplex: conditions of optimality, SciPy, and enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import LinearConstraint, minimize

from consensus_optax._rules.solvers import over_simplex
from tests._reference_multi_objective import shortest
from tests._rules.solvers._gramians import ILL_CONDITIONED, RANDOM, stacks

pytestmark = pytest.mark.slow


@jax.jit
def shortest_combinations(gramians):
    everyone = jnp.ones(gramians.shape[-1], bool)
    return jax.vmap(lambda g: over_simplex(g, everyone))(gramians)


@jax.jit
def worst_gains(gramians, c):
    """As CAGrad asks for: (solution, p, radius) for a batch of Gramians."""
    everyone = jnp.ones(gramians.shape[-1], bool)

    def solve(g):
        linear = g.mean(1)
        radius = c * jnp.sqrt(jnp.maximum(linear.mean(), 0))
        return over_simplex(g, everyone, linear, radius), linear, radius

    return jax.vmap(solve)(gramians)


def worst_condition(gramian, x):
    """How far any row's slope is below the mean slope, in float64 and without units."""
    x = np.float64(x)
    lengths = np.sqrt(np.float64(gramian.diagonal()))
    used = x @ lengths
    slope = np.float64(gramian) @ x
    return ((x @ slope - slope) / (used * (used + lengths))).max()


@pytest.mark.parametrize(("b", "count"), [(2, 250), (5, 300), (12, 300), (32, 150)])
def test_random_gramians(b, count):
    gramians = stacks(RANDOM, b, count, seed=b)
    weights, state = shortest_combinations(gramians)
    assert state.converged.all()
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    for gramian, w in zip(gramians, weights, strict=True):
        assert worst_condition(gramian, w) <= 1e-5


@pytest.mark.parametrize("b", [3, 10, 24])
def test_ill_conditioned_gramians(b):
    gramians = stacks(ILL_CONDITIONED, b, 35, seed=b)
    weights, state = shortest_combinations(gramians)
    assert state.converged.all()
    for gramian, w in zip(gramians, weights, strict=True):
        assert worst_condition(gramian, w) <= 1e-5


@pytest.mark.parametrize("kinds", [RANDOM, ILL_CONDITIONED], ids=["random", "ill"])
def test_objective_of_enumeration(kinds):
    rng, b = np.random.default_rng(4), 6
    for maker in kinds.values():
        rows = np.float32(maker(rng, b)).astype(float)
        x, _ = shortest(rows.tolist())
        got, _ = over_simplex(
            jnp.asarray(rows @ rows.T, jnp.float32), jnp.ones(b, bool)
        )
        got = np.float64(got)
        size = np.linalg.norm(rows, axis=1)
        best, found = np.linalg.norm(x @ rows), np.linalg.norm(got @ rows)
        # Rounding of the Gramian: half the digits of a short combination.
        assert found <= best * (1 + 1e-4) + 1e-3 * (got @ size)


@pytest.mark.parametrize("c", [0.1, 0.5, 1.0, 2.0])
def test_the_norm_on_random_gramians(c):
    gramians = stacks(RANDOM, 9, 50, seed=8)
    (weights, state), linear, radius = worst_gains(gramians, c)
    assert state.converged.all()
    for g, x, p, k in zip(gramians, weights, linear, radius, strict=True):
        check_against_scipy(*(np.float64(z) for z in (g, x, p, k)))


def check_against_scipy(gramian, x, linear, radius):
    size = np.trace(gramian) / len(x)

    def objective(z):
        return (linear @ z + radius * np.sqrt(max(z @ gramian @ z, 0))) / size

    sum_is_one = LinearConstraint(np.ones(len(x)), 1, 1)
    bounds = [(0, 1)] * len(x)
    start = np.full(len(x), 1 / len(x))
    best = minimize(
        objective, start, method="SLSQP", bounds=bounds, constraints=sum_is_one
    )
    scale = abs(best.fun) + radius * np.sqrt(x @ gramian.diagonal()) / size
    assert objective(x) <= best.fun + 1e-4 * scale


@pytest.mark.parametrize("c", [0.1, 0.5, 2.0])
def test_the_norm_where_rows_nearly_cancel(c):
    """Converged, or so short that the Gramian cannot tell it from zero."""
    gramians = stacks(ILL_CONDITIONED, 10, 35, seed=9)
    (weights, state), _, _ = worst_gains(gramians, c)
    squares = np.einsum("nb,nbc,nc->n", weights, gramians, weights)
    short = squares <= 1e-6 * np.trace(gramians, axis1=1, axis2=2)
    assert (state.converged | short).all()
    assert state.residual.max() <= 1e-3


def test_absent_rows_are_not_used():
    gramians = stacks(RANDOM, 6, 5, seed=6)
    present = jnp.array([True, False, True, True, False, True])
    some = np.flatnonzero(present)
    solve = jax.jit(over_simplex)
    for gramian in gramians:
        masked = jnp.where(present[:, None] & present[None, :], gramian, 0)
        linear = jnp.where(present, masked.mean(1), 0)
        for options in ({}, {"linear": linear, "radius": jnp.sqrt(masked.mean())}):
            padded, _ = solve(masked, present, **options)
            alone = {k: v[some] if v.ndim else v for k, v in options.items()}
            few, _ = solve(
                jnp.asarray(gramian[np.ix_(some, some)]), jnp.ones(4, bool), **alone
            )
            # Where two rows serve almost alike, the least value says more than where.
            np.testing.assert_allclose(padded[some], few, rtol=0, atol=1e-4)
            assert not padded[jnp.array([1, 4])].any()


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_scale_is_irrelevant(scale):
    (gramian,) = stacks(RANDOM, 6, 1, seed=1)
    everyone = jnp.ones(6, bool)
    plain, _ = over_simplex(jnp.asarray(gramian), everyone)
    scaled, state = over_simplex(jnp.asarray(gramian * np.float32(scale)), everyone)
    np.testing.assert_allclose(scaled, plain, rtol=0, atol=1e-5)
    assert state.converged


def test_512_rows():
    gramians = stacks({"two camps": RANDOM["two camps"]}, 512, 1, seed=0)
    weights, state = shortest_combinations(gramians)
    assert state.converged.all()
    assert worst_condition(gramians[0], weights[0]) <= 1e-5


def test_too_few_steps_are_reported():
    (gramian,) = stacks(RANDOM, 9, 1, seed=1)
    stopped = over_simplex(jnp.asarray(gramian), jnp.ones(9, bool), max_steps=2)
    assert not stopped.state.converged


def test_differentiation_sees_a_constant():
    (gramian,) = stacks(RANDOM, 4, 1, seed=2)
    first = lambda g: over_simplex(g, jnp.ones(4, bool)).weights[0]
    np.testing.assert_array_equal(jax.grad(first)(jnp.asarray(gramian)), 0)
