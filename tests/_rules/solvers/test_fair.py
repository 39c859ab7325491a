"""Fair division: its equations in float64, and where they have no solution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax._rules.solvers import cancels, fair_division
from tests._rules.solvers._gramians import ILL_CONDITIONED, RANDOM, stacks

pytestmark = pytest.mark.slow


@jax.jit
def divided(gramians, counts, alpha):
    solve = lambda g: fair_division(g, counts, alpha)
    return jax.vmap(solve)(gramians)


def worst_equation(gramian, counts, alpha, v):
    """|(Gv)_i - (c_i / v_i)^(1 / alpha)|, relative to what does not cancel."""
    gramian, v = np.float64(gramian), np.float64(v)
    wanted = (counts / v) ** (1 / alpha)
    return (np.abs(gramian @ v - wanted) / (np.abs(gramian) @ v + wanted)).max()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("b", [2, 7, 20])
def test_random_gramians(b, alpha):
    gramians = stacks(RANDOM, b, 50, seed=b)
    counts = 0.5 + np.arange(b) % 3
    weights, state = divided(gramians, jnp.float32(counts), alpha)
    assert state.converged.all()
    assert (weights > 0).all()
    for gramian, v in zip(gramians, weights, strict=True):
        assert worst_equation(gramian, counts, alpha, v) <= 1e-5


@pytest.mark.parametrize(
    ("alpha", "far"),
    [(0.01, 1), (0.1, 4), (0.3, 4), (1, 6), (5, 4), (10, 2), (100, 2), (1000, 1)],
)
def test_far_alphas_of_rows_of_far_lengths(alpha, far):
    """Independent rows, whose lengths differ 10^far-fold: a weight may be 10^-1000."""
    b, rng = 8, np.random.default_rng(3)
    lengths = 10 ** np.linspace(-far / 2, far / 2, b)
    rows = np.stack([rng.normal(size=(b, 20)) for _ in range(40)])
    rows *= np.stack([rng.permutation(lengths) for _ in rows])[..., None]
    gramians = np.einsum("nip,njp->nij", rows, rows).astype(np.float32)
    weights, state = divided(gramians, jnp.ones(b), jnp.float32(alpha))
    assert state.converged.all()
    for gramian, v in zip(np.float64(gramians), np.float64(weights), strict=True):
        some = v > 1e-30  # of the others nothing adds to a gain
        wanted, reach = (1 / v[some]) ** (1 / alpha), (np.abs(gramian) @ v)[some]
        off = np.abs((gramian @ v)[some] - wanted) / (reach + wanted)
        assert off.max() <= 2e-5  # as the residual, and of a Gramian's rounding
        assert np.all(
            gramian @ v > -4 * np.finfo(np.float32).eps * (np.abs(gramian) @ v)
        )


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_ill_conditioned_gramians_have_a_solution_or_cancel(alpha):
    gramians = stacks(ILL_CONDITIONED, 10, 35, seed=1)
    weights, state = divided(gramians, jnp.ones(10), alpha)
    cancel = jax.vmap(cancels)(jnp.asarray(gramians), weights)
    assert (state.converged | cancel).all()
    assert 0 < cancel.sum() < 35


def test_rows_that_cancel_are_told():
    rows = jnp.array([[1.0, 2], [-2, -4], [3, 6]])
    solved = fair_division(rows @ rows.T, jnp.ones(3), jnp.float32(1))
    assert jnp.isfinite(solved.weights).all()
    assert cancels(rows @ rows.T, solved.weights)


def test_absent_and_zero_rows_have_no_weight():
    rows = np.array([[1.0, 0.5], [0, 0], [0.2, 1.0], [3.0, 1.0]])
    counts = jnp.array([1.0, 1, 1, 0])
    gramian = jnp.asarray(rows @ rows.T, jnp.float32)
    gramian = jnp.where((counts > 0)[:, None] & (counts > 0)[None, :], gramian, 0)
    weights = fair_division(gramian, counts, jnp.float32(1)).weights
    assert (weights > 0).tolist() == [True, False, True, False]
    few = rows[[0, 2]] @ rows[[0, 2]].T
    assert worst_equation(few, np.ones(2), 1.0, weights[jnp.array([0, 2])]) <= 1e-6


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_lengths_only_rescale_weights(scale):
    (gramian,) = stacks(RANDOM, 5, 1, seed=0)
    plain = fair_division(jnp.asarray(gramian), jnp.ones(5), jnp.float32(1)).weights
    factors = np.float32([scale, 1, 1 / scale, 1, scale])
    scaled = jnp.asarray(gramian * factors[:, None] * factors)
    got = fair_division(scaled, jnp.ones(5), jnp.float32(1))
    np.testing.assert_allclose(got.weights * factors, plain, rtol=2e-5)
    assert got.state.converged


def test_nobody():
    solved = fair_division(jnp.zeros((3, 3)), jnp.zeros(3), jnp.float32(2))
    np.testing.assert_array_equal(solved.weights, 0)


def test_float64_is_solved_to_float64():
    with jax.enable_x64(True):
        (gramian,) = stacks(RANDOM, 8, 1, seed=4)
        solved = fair_division(
            jnp.asarray(gramian, jnp.float64), jnp.ones(8), jnp.float64(2)
        )
        assert solved.state.converged
        assert worst_equation(gramian, np.ones(8), 2.0, solved.weights) <= 1e-13
