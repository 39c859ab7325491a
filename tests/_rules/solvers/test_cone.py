"""Projections on the dual cone: conditions of optimality, and SciPy's least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from consensus_optax._rules.solvers import dual_cone, nonnegative
from tests._rules.solvers._gramians import ILL_CONDITIONED, RANDOM, stacks

pytestmark = pytest.mark.slow

EPSILON = 1e-4


@jax.jit
def projections(gramians):
    """As UPGrad asks for: every row's own direction, for a batch of Gramians."""
    lower = jnp.eye(gramians.shape[-1]) / gramians.shape[-1]
    return jax.vmap(lambda g: dual_cone(g, lower, jnp.float32(EPSILON)))(gramians)


def worst_condition(gramian, lower, weights):
    """The largest violation in float64, in units in which H has a unit diagonal."""
    size = len(gramian)
    hessian = np.float64(gramian) / np.trace(gramian) + EPSILON * np.eye(size)
    lengths = np.sqrt(hessian.diagonal())
    slack = (np.float64(weights) - lower) * lengths
    slope = np.float64(weights) @ hessian / lengths
    return np.abs(np.minimum(slack, slope)).max() / (lower * lengths).sum(1).max()


@pytest.mark.parametrize(("b", "count"), [(2, 250), (5, 300), (12, 300), (32, 150)])
def test_random_gramians(b, count):
    gramians = stacks(RANDOM, b, count, seed=b)
    weights, state = projections(gramians)
    assert state.converged.all()
    assert state.residual.max() <= 1e-5
    for gramian, w in zip(gramians, weights, strict=True):
        assert worst_condition(gramian, np.eye(b) / b, w) <= 1e-5


@pytest.mark.parametrize("b", [3, 10, 24])
def test_ill_conditioned_gramians(b):
    gramians = stacks(ILL_CONDITIONED, b, 35, seed=b)
    weights, state = projections(gramians)
    assert state.converged.all()
    assert state.residual.max() <= 1e-5
    for gramian, w in zip(gramians, weights, strict=True):
        assert worst_condition(gramian, np.eye(b) / b, w) <= 1e-5


@pytest.mark.parametrize("kinds", [RANDOM, ILL_CONDITIONED], ids=["random", "ill"])
def test_objectives_of_non_negative_least_squares(kinds):
    b = 8
    gramians = stacks(kinds, b, 14, seed=3)
    weights, _ = projections(gramians)
    for gramian, rows in zip(gramians, weights, strict=True):
        hessian = np.float64(gramian) / np.trace(gramian) + EPSILON * np.eye(b)
        root = np.linalg.cholesky(hessian).T
        for i, v in enumerate(np.float64(rows)):
            _, distance = nnls(root, -root[:, i] / b)  # |R (u + z)| over z >= 0
            assert v @ hessian @ v <= distance**2 * (1 + 1e-4)


def test_no_conflict_needs_no_step_and_bounds_are_met_exactly():
    gramian = jnp.array([[2.0, 1, 0], [1, 3, 0.5], [0, 0.5, 1]])
    lower = jnp.array([[1.0, 2, 3], [0, 1, 0]])
    weights, state = dual_cone(gramian, lower, jnp.float32(EPSILON))
    np.testing.assert_array_equal(weights, lower)
    assert state.residual == 0
    assert state.converged


@pytest.mark.slow
def test_512_rows():
    gramian = stacks({"two camps": RANDOM["two camps"]}, 512, 1, seed=0)
    weights, state = projections(gramian)
    assert state.converged.all()
    assert (weights[0] >= jnp.eye(512) / 512).all()
    # As DualProj asks for: one problem, whose slopes are sums of 512 terms.
    mean = jnp.full((1, 512), 1 / 512)
    assert dual_cone(
        jnp.asarray(gramian[0]), mean, jnp.float32(EPSILON)
    ).state.converged


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_scale_is_irrelevant(scale):
    (gramian,) = stacks(RANDOM, 6, 1, seed=1)
    lower = jnp.eye(6)
    plain = dual_cone(jnp.asarray(gramian), lower, jnp.float32(EPSILON)).weights
    scaled = gramian * np.float32(scale)
    got = dual_cone(jnp.asarray(scaled), lower, jnp.float32(EPSILON)).weights
    np.testing.assert_allclose(got, plain, rtol=0, atol=1e-5)


def test_too_few_steps_are_reported():
    (gramian,) = stacks({"rank two": ILL_CONDITIONED["rank two"]}, 24, 1, seed=0)
    lower = jnp.eye(24)
    stopped = dual_cone(jnp.asarray(gramian), lower, jnp.float32(EPSILON), max_steps=3)
    assert not stopped.state.converged
    assert stopped.state.residual > 1e-5


def test_float64_is_solved_to_float64():
    with jax.enable_x64(True):
        (gramian,) = stacks(ILL_CONDITIONED, 10, 1, seed=5)
        lower = jnp.eye(10, dtype=jnp.float64)
        weights, state = dual_cone(
            jnp.asarray(gramian, jnp.float64), lower, jnp.float64(EPSILON)
        )
        assert state.converged
        assert state.residual.dtype == jnp.float32
        assert worst_condition(gramian, np.eye(10), np.asarray(weights)) <= 1e-10


def test_differentiation_sees_a_constant():
    (gramian,) = stacks(RANDOM, 4, 1, seed=2)

    def total(g):
        return dual_cone(g, jnp.eye(4), jnp.float32(EPSILON)).weights.sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(gramian)), 0)


def test_a_quadratic_over_nonnegative_numbers_meets_its_conditions():
    """Of any offset, where those of a projection are in the range of the matrix."""
    random = np.random.default_rng(8)
    units = random.normal(size=(20, 6, 9))
    units /= np.linalg.norm(units, axis=2, keepdims=True)
    offsets = np.float32(random.uniform(-1, 1, (20, 3, 6)))
    hessians = np.float32(units @ np.swapaxes(units, 1, 2))
    found = np.asarray(jax.jit(jax.vmap(nonnegative))(hessians, offsets), float)
    assert (found >= 0).all()
    slopes = found @ hessians.astype(float) + offsets
    # Conjugate gradients end at 4 roundings of float32; the slope has a few more.
    assert (np.minimum(found, slopes) > -1e-5).all()
    assert (np.abs(np.minimum(found, slopes)) < 1e-5).all()
    assert 0.2 < (found > 0).mean() < 0.8
