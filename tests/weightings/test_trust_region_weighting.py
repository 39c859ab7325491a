"""Trust region in the span of the rows: against a search, and its special cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import consensus_optax as co
from tests._pinned import LARGE, SMALL, first_update


def best(rows, hessian, radius, starts=8):
    """The minimum of the model over span and ball, by local searches in the basis."""
    _, sizes, basis = np.linalg.svd(rows, full_matrices=False)
    basis = basis[sizes > 1e-6 * sizes[0]]
    slope, curvature = basis @ rows.mean(0), basis @ hessian @ basis.T
    model = lambda y: -slope @ y + y @ curvature @ y / 2
    ball = {"type": "ineq", "fun": lambda y: radius**2 - y @ y}
    random, found = np.random.default_rng(0), np.inf
    for _ in range(starts):
        start = random.normal(size=len(slope))
        start *= radius / np.linalg.norm(start)
        result = scipy.optimize.minimize(model, start, constraints=ball)
        if result.x @ result.x <= radius**2 * (1 + 1e-6):
            found = min(found, result.fun)
    return found


RULES = {radius: co.trust_region_weighting(radius) for radius in (0.3, 20.0)}


@pytest.mark.parametrize("kind", ["convex", "indefinite", "flat", "negative"])
@pytest.mark.parametrize("radius", RULES)
@pytest.mark.parametrize("rows", [SMALL, LARGE, LARGE[:3]], ids=["2x3", "10x5", "3x5"])
def test_reaches_the_minimum_of_the_model(kind, radius, rows):
    random = np.random.default_rng(5)
    axes = np.linalg.qr(random.normal(size=(rows.shape[1],) * 2))[0]
    size = {
        "convex": np.linspace(0.5, 3, rows.shape[1]),
        "indefinite": np.linspace(-1, 2, rows.shape[1]),
        "flat": np.zeros(rows.shape[1]),
        "negative": -np.linspace(0.5, 3, rows.shape[1]),
    }[kind]
    hessian = axes @ np.diag(size) @ axes.T
    span = jnp.asarray(rows @ hessian @ rows.T, jnp.float32)
    update = first_update(RULES[radius], rows, span_hessian=span)
    assert np.linalg.norm(update) <= radius * (1 + 1e-4)
    value = -rows.mean(0) @ update + update @ hessian @ update / 2
    wanted = best(rows, hessian, radius)
    assert abs(value - wanted) <= 1e-3 * abs(wanted)  # float32, rows 1 to 50 long


def test_is_newton_inside_the_ball_and_says_so():
    diagonal = jnp.array([1.0, 4.0])
    loss = lambda w: jnp.sum(diagonal * w**2) / 2
    params, rows = jnp.array([2.0, -1.0]), jnp.array([[2.0, 0.0], [2.0, -8.0]])
    rule = co.trust_region_weighting(10.0)
    hessian = co.span_hessian(loss, params, rows)
    update, state = rule.update(rows, rule.init(params), params, span_hessian=hessian)
    np.testing.assert_allclose(update, params, rtol=1e-5)
    np.testing.assert_allclose(state.rule_state.predicted_decrease, 4.0, rtol=1e-5)
    np.testing.assert_allclose(state.rule_state.least_curvature, 1.0, rtol=1e-5)
    assert not state.rule_state.on_boundary


def test_over_the_simplex_absent_rows_have_no_weight():
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [np.nan, 1.0]])
    hessian = jnp.where(jnp.isnan(rows @ rows.T), jnp.nan, jnp.eye(3))
    rule = co.trust_region_weighting(0.5, region="simplex")
    update = first_update(rule, rows, [1, 0, 1], span_hessian=hessian)
    np.testing.assert_allclose(update, [0.5, 0.0], rtol=1e-5)


@pytest.mark.parametrize("least", [0.5, -1.0], ids=["convex", "indefinite"])
def test_over_the_simplex_it_is_stationary_and_no_worse_than_the_mean(least):
    rows, limit = LARGE[:6], 0.2
    axes = np.linalg.qr(np.random.default_rng(5).normal(size=(5, 5)))[0]
    hessian = axes @ np.diag(np.linspace(least, 3, 5)) @ axes.T
    span = rows @ hessian @ rows.T
    rule, params = co.trust_region_weighting(limit, region="simplex"), jnp.zeros(5)
    given = jnp.asarray(rows, jnp.float32), rule.init(params), params
    update, state = jax.jit(rule.update)(
        *given, span_hessian=jnp.asarray(span, jnp.float32)
    )
    model = lambda u: -rows.mean(0) @ u + u @ hessian @ u / 2
    scale = np.abs(rows @ rows.T).max()
    assert state.rule_state.converged
    assert model(update) <= model(limit * rows.mean(0)) + 1e-6 * scale
    np.testing.assert_allclose(
        state.rule_state.predicted_decrease, -model(update), rtol=0, atol=1e-5 * scale
    )
    slopes = rows @ (hessian @ update - rows.mean(0))  # of the model along every row
    assert slopes.min() * limit >= (hessian @ update - rows.mean(0)) @ update - (
        1e-5 * scale
    )
    start = np.full(6, 1 / 6)
    value = lambda a: model(limit * a @ rows) / scale
    sum_is_one = {"type": "eq", "fun": lambda a: a.sum() - 1}
    best = scipy.optimize.minimize(
        value, start, bounds=[(0, 1)] * 6, constraints=sum_is_one
    )
    if least > 0:
        assert model(update) / scale <= best.fun + 1e-5


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scaling_the_loss_changes_nothing(scale):
    """Rows and Hessian grow alike, so that the best step is the same."""
    hessian = np.diag([1.0, 2.0, 3.0, 4.0, 5.0])
    rule = co.trust_region_weighting(0.5)
    plain = first_update(
        rule, LARGE, span_hessian=jnp.asarray(LARGE @ hessian @ LARGE.T, jnp.float32)
    )
    rows = scale * LARGE
    span = jnp.asarray(rows @ (hessian * scale) @ rows.T, jnp.float32)
    scaled = first_update(rule, rows, span_hessian=span)
    np.testing.assert_allclose(scaled, plain, rtol=1e-3, atol=1e-4)


def test_absent_rows_do_not_span():
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [np.nan, 1.0]])
    hessian = jnp.where(jnp.isnan(rows @ rows.T), jnp.nan, jnp.eye(3))
    rule = co.trust_region_weighting(10.0)
    update = first_update(rule, rows, [1, 0, 1], span_hessian=hessian)
    np.testing.assert_allclose(update, [1.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("region", ["ball", "simplex"])
def test_zero_rows_move_nothing(region):
    rule = co.trust_region_weighting(1.0, region)
    assert not first_update(
        rule, np.zeros((3, 2)), span_hessian=jnp.zeros((3, 3))
    ).any()


def test_missing_or_misshapen_curvature_is_an_error():
    rule = co.trust_region_weighting(1.0)
    with pytest.raises(ValueError, match="`region` must be one of 'ball', 'simplex'"):
        co.trust_region_weighting(1.0, "cube")
    with pytest.raises(ValueError, match="`span_hessian` must be the Hessian"):
        first_update(rule, SMALL)
    with pytest.raises(ValueError, match=r"`span_hessian` must have shape \(2, 2\)"):
        first_update(rule, SMALL, span_hessian=jnp.ones((3, 3)))
