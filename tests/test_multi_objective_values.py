"""Multi-objective rules on two pinned stacks: plain loops, and what they promise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from tests import _reference_multi_objective as ref
from tests._pinned import LARGE, SMALL, check, first_update
from tests._pinned_multi_objective import NASH, PINNED
from tests._reference_surgery import pcgrad

pytestmark = pytest.mark.slow

KEY = jax.random.key(5)
PAIRS = {
    "mgda": (co.mgda(), ref.mgda),
    "upgrad": (co.upgrad(), ref.upgrad()),
    "upgrad, less regular": (co.upgrad(regularization=1e-3), ref.upgrad(1e-3)),
    "dual_projection": (co.dual_projection(), ref.dual_projection()),
    "cagrad": (co.cagrad(), ref.cagrad(0.5)),
    "cagrad, wide": (co.cagrad(2.0), ref.cagrad(2.0)),
    "cagrad, clipped": (co.cagrad(clip=True), ref.cagrad(0.5, clip=True)),
    "pcgrad": (co.pcgrad(KEY), pcgrad(KEY)),
    "imtl_g": (co.imtl_g(), ref.imtl_g),
    "aligned_mtl": (co.aligned_mtl(), ref.aligned_mtl()),
    "aligned_mtl, median": (co.aligned_mtl(scale="median"), ref.aligned_mtl("median")),
    "aligned_mtl, mean": (co.aligned_mtl(scale="mean"), ref.aligned_mtl("mean")),
    "nash_mtl": (co.nash_mtl(), ref.nash_mtl(1.0)),
    "nash_mtl, of any length": (co.nash_mtl(None), ref.nash_mtl(None)),
    "conflict_free": (co.conflict_free(), ref.conflict_free()),
    "fairgrad": (co.fairgrad(), ref.fairgrad(2.0)),
    "fairgrad, half": (co.fairgrad(0.5), ref.fairgrad(0.5)),
}


@pytest.mark.parametrize("name", PINNED)
def test_equals_another_package(name):
    """Its CAGrad stops where slopes are 1e-4 apart."""
    for rows, wanted in zip((SMALL, LARGE), PINNED[name], strict=True):
        got = first_update(PAIRS[name][0], rows)
        size = np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-4 * size)


def test_nash_mtl_equals_another_package_or_gains_more():
    small, large = (first_update(co.nash_mtl(), rows) for rows in (SMALL, LARGE))
    np.testing.assert_allclose(small, NASH[0], rtol=0, atol=1e-4)
    gains, theirs = LARGE @ large, LARGE @ np.array(NASH[1])
    assert gains.min() > 0
    assert np.log(gains).sum() > np.log(theirs).sum() + 1


@pytest.mark.parametrize("name", PAIRS)
def test_pinned_stacks(name):
    """Rounding of a Gramian is squared: 1e-4 of the largest entry."""
    check(*PAIRS[name], rtol=1e-4)


def test_small_stack_by_hand():
    """Rows of squared lengths 21 and 37.25 with inner product -22."""
    first = (37.25 + 22) / (21 + 37.25 + 44)
    wanted = first * SMALL[0] + (1 - first) * SMALL[1]
    np.testing.assert_allclose(first_update(co.mgda(), SMALL), wanted, rtol=1e-5)
    # Each row less its part along the other.
    projected = SMALL[0] + 22 / 37.25 * SMALL[1] + SMALL[1] + 22 / 21 * SMALL[0]
    got = first_update(co.pcgrad(KEY), SMALL)
    np.testing.assert_allclose(got, projected, rtol=1e-5)
    # UPGrad is half of that, but for its regularisation.
    got = first_update(co.upgrad(), SMALL)
    np.testing.assert_allclose(got, projected / 2, rtol=2e-3)


PREFERENCE = np.array([3, 1, 2, 0.5, 1, 1, 2, 4, 0.1, 1])
PREFERRED = {
    "upgrad": (co.upgrad, ref.upgrad),
    "cagrad": (co.cagrad, ref.cagrad),
    "cagrad, clip": (partial(co.cagrad, clip=True), partial(ref.cagrad, clip=True)),
    "dual_projection": (co.dual_projection, ref.dual_projection),
    "aligned_mtl": (co.aligned_mtl, ref.aligned_mtl),
    "conflict_free": (co.conflict_free, ref.conflict_free),
}


@pytest.mark.parametrize("name", PREFERRED)
def test_preferences(name):
    factory, reference = PREFERRED[name]
    weights = 0.5 + np.arange(10) % 3
    for given in (PREFERENCE, PREFERENCE.tolist(), jnp.asarray(PREFERENCE)):
        got = first_update(factory(preference=given), LARGE, weights)
        wanted = reference(preference=PREFERENCE.tolist())(
            LARGE.tolist(), weights.tolist()
        )
        size = max(np.abs(wanted).max(), 1)  # 1: entries of the rows, which may cancel
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * size)


@pytest.mark.parametrize("name", PREFERRED)
def test_preferences_are_checked(name):
    factory, _ = PREFERRED[name]
    for wrong in ([1.0, -1.0], [], [[1.0]], "high", [np.nan, 1.0], 2.0, [0.0, 0.0]):
        with pytest.raises(
            ValueError, match="`preference` must be a vector of numbers"
        ):
            factory(preference=wrong)
    with pytest.raises(ValueError, match=r"`preference` must have .*\(10,\); got \(2,"):
        first_update(factory(preference=[1.0, 2.0]), LARGE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: co.upgrad(regularization=0.0), r"`regularization` must be in \(0"),
        (lambda: co.dual_projection(regularization=-1.0), "`regularization` must be"),
        (lambda: co.cagrad(-0.1), r"`c` must be in \[0"),
        (lambda: co.aligned_mtl(scale="rms"), "`scale` must be one of 'min', 'median'"),
        (lambda: co.nash_mtl(0.0), r"`max_norm` must be in \(0"),
        (lambda: co.fairgrad(-1.0), r"`alpha` must be in \[0"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def random_stacks(count=60):
    """Stacks of three to eight rows of 6 coordinates, many conflicts: (rows, weights).

    Padded to eight rows, so that one compilation serves all.
    """
    rng = np.random.default_rng(12)
    for i in range(count):
        weights = np.float64(np.arange(8) < 3 + i % 6)
        yield rng.normal(size=(8, 6)) * weights[:, None], weights


NO_CONFLICT = {
    "mgda": co.mgda(),
    "upgrad": co.upgrad(regularization=1e-6),
    "dual_projection": co.dual_projection(regularization=1e-6),
    "cagrad, c = 1": co.cagrad(1.0),
    "cagrad, c = 3": co.cagrad(3.0),
    "nash_mtl": co.nash_mtl(),
    "fairgrad": co.fairgrad(),
}


@pytest.mark.parametrize("name", NO_CONFLICT)
def test_no_row_is_opposed(name):
    """To 1e-3 of the two lengths: the Gramian tells cosines to half the digits."""
    for rows, weights in random_stacks():
        update = first_update(NO_CONFLICT[name], rows, weights)
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(update)
        assert (rows @ update >= -1e-3 * lengths).all()


def test_upgrad_is_linear_in_the_length_of_each_row():
    """Positive factors leave the cone alone; 1e-4 is small against 8 equal rows."""
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(8, 60)) + 0.5 * rng.normal(size=60)
    first, second = rng.uniform(0.5, 2, size=(2, 8, 1))
    reducer = co.upgrad(regularization=1e-6)
    parts = first_update(reducer, first * rows) + first_update(reducer, second * rows)
    both = first_update(reducer, (first + second) * rows)
    np.testing.assert_allclose(both, parts, rtol=0, atol=1e-3 * np.abs(parts).max())


def test_without_conflict_projections_are_the_mean():
    rows = np.abs(np.random.default_rng(3).normal(size=(5, 7)))
    for reducer in (co.upgrad(), co.dual_projection()):
        np.testing.assert_allclose(first_update(reducer, rows), rows.mean(0), rtol=1e-6)
    got = first_update(co.pcgrad(KEY), rows)
    np.testing.assert_allclose(got, rows.sum(0), rtol=1e-6)


def test_equal_gains_cosines_and_projections():
    rows = np.random.default_rng(4).normal(size=(4, 20))
    lengths = np.linalg.norm(rows, axis=1)
    projections = rows @ first_update(co.imtl_g(), rows) / lengths
    np.testing.assert_allclose(projections, projections[0], rtol=1e-4)
    preference = np.array([1.0, 2.0, 0.5, 3.0])
    cosines = rows @ first_update(co.conflict_free(preference), rows) / lengths
    shares = cosines / preference
    np.testing.assert_allclose(shares, shares[0], rtol=1e-4)
    assert shares[0] > 0


DEPENDENT = [
    "imtl_g",
    "aligned_mtl",
    "aligned_mtl, median",
    "aligned_mtl, mean",
    "conflict_free",
]


@pytest.mark.parametrize("name", DEPENDENT)
def test_rows_that_depend_on_each_other_exactly(name):
    """Integers, so that a Gramian of rank two is one: pseudo-inverses."""
    reducer, reference = PAIRS[name]
    random = np.random.default_rng(8)
    for _ in range(10):
        factors = random.integers(-3, 4, (5, 2)), random.integers(-3, 4, (2, 7))
        rows = np.float64(factors[0] @ factors[1])
        if np.linalg.matrix_rank(rows) == 2:
            wanted = reference(rows.tolist(), [1.0] * 5)
            got = first_update(reducer, rows)
            size = np.abs(rows).max()
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * size)


def test_gains_of_bargaining_and_of_fairness():
    rows = np.random.default_rng(6).normal(size=(5, 12))
    update = first_update(co.nash_mtl(None), rows)
    weights = np.linalg.lstsq(rows.T, update, rcond=None)[0]
    np.testing.assert_allclose(weights * (rows @ update), 1, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(update), np.sqrt(5), rtol=1e-5)
    assert np.linalg.norm(first_update(co.nash_mtl(0.25), rows)) == pytest.approx(0.25)
    factors = np.array([[1.0], [100], [1], [0.01], [3]])
    got = first_update(co.nash_mtl(1.0), factors * rows)  # lengths do not matter
    np.testing.assert_allclose(got, first_update(co.nash_mtl(1.0), rows), atol=1e-4)
    fair = first_update(co.fairgrad(1.0), rows)
    np.testing.assert_allclose(fair, update, rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        first_update(co.fairgrad(0.0), rows), rows.mean(0), rtol=1e-5
    )


@pytest.mark.parametrize("alpha", [0.5, 2.0, 8.0])
def test_fairness_scales_with_its_power(alpha):
    rows = np.random.default_rng(6).normal(size=(5, 12))
    power = (1 - alpha) / (1 + alpha)
    wanted = 16.0**power * first_update(co.fairgrad(alpha), rows)
    got = first_update(co.fairgrad(alpha), 16 * rows)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_cagrad_stays_in_its_ball_and_c_0_is_the_mean():
    itself, near = co.cagrad(0.0), co.cagrad(0.4)
    for rows, weights in random_stacks(20):
        mean = rows.sum(0) / weights.sum()
        update = first_update(itself, rows, weights)
        np.testing.assert_allclose(update, mean, rtol=0, atol=1e-6)
        away = first_update(near, rows, weights) - mean
        assert np.linalg.norm(away) <= 0.4 * np.linalg.norm(mean) * (1 + 1e-5)


def test_orders_of_projection_change_from_step_to_step():
    rows, params = jnp.asarray(LARGE, jnp.float32), jnp.zeros(5)
    for key in (jax.random.key(1), jax.random.PRNGKey(1)):
        reducer = co.pcgrad(key)
        first, state = reducer.update(rows, reducer.init(params), params)
        second, _ = reducer.update(rows, state, params)
        assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()
        wanted = pcgrad(key, step=1)(LARGE.tolist(), [1.0] * 10)
        np.testing.assert_allclose(second, wanted, rtol=1e-4, atol=1e-3)


def test_residuals_are_in_the_state():
    rows, params = jnp.asarray(LARGE, jnp.float32), jnp.zeros(5)
    for name in (*NO_CONFLICT, "cagrad"):
        reducer = PAIRS[name][0] if name in PAIRS else NO_CONFLICT[name]
        state = reducer.init(params)
        assert not optax.tree.get(state, "converged")
        _, state = jax.jit(reducer.update)(rows, state, params)
        assert optax.tree.get(state, "converged")
        assert 0 <= optax.tree.get(state, "residual") <= 1e-5


@pytest.mark.parametrize(("size", "units"), [(8, 1.2), (3, 64)])
def test_precision_falls_with_the_square_of_the_condition(size, units):
    """As the docstrings say, for independent rows and for dependent ones."""
    rows = np.random.default_rng(7).normal(size=(500, 4, size)).astype(np.float32)
    lengths = np.linalg.norm(np.float64(rows), axis=2)
    directions, ones = rows / lengths[..., None], np.ones(4)
    inverse = lambda matrix: np.linalg.pinv(np.float64(matrix), rcond=1e-9)
    for reducer, matrix in ((co.conflict_free(), directions), (co.imtl_g(), rows)):
        first = lambda x, r=reducer: r.update(x, r.init(x[0]), x[0])[0]
        got = np.asarray(jax.jit(jax.vmap(first))(jnp.asarray(rows)))
        if matrix is rows:
            v = (inverse(np.float64(rows) @ rows.mT) @ lengths[..., None])[..., 0]
            total = v.sum(1, keepdims=True)
            lost = np.abs(v).sum(1) / np.abs(total[:, 0])
            wanted = np.einsum("sb,sbp->sp", v / total, rows)
        else:
            d, lost = inverse(directions) @ ones, 1.0
            d /= np.linalg.norm(d, axis=1, keepdims=True)
            wanted = np.einsum("sbp,sp->s", rows, d)[:, None] * d
        spectrum = np.linalg.svd(np.float64(matrix), compute_uv=False)
        squared = (spectrum[:, 0] / spectrum[:, -1]) ** 2
        error = np.linalg.norm(got - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        bound = units * np.finfo(np.float32).eps * squared * lost
        assert (error <= bound).all(), np.max(error / bound)
        assert np.max(error / bound) > 0.02  # so that the bound means something
