"""Variance over rows, coordinate by coordinate."""

import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax._rows.folding import array_at_once
from consensus_optax._rows.statistics import MOMENTS
from consensus_optax.diagnostics import gradient_variance
from tests._pinned import LARGE


def test_is_the_unbiased_variance():
    got = gradient_variance(jnp.asarray(LARGE, jnp.float32))
    np.testing.assert_allclose(got, LARGE.var(0, ddof=1), rtol=1e-5)


def test_is_unbiased_for_unequal_weights():
    random = np.random.default_rng(0)
    rows = jnp.asarray(3 * random.normal(size=(4, 100_000)), jnp.float32)
    found = np.asarray(gradient_variance(rows, jnp.array([1.0, 2.0, 5.0, 0.0])))
    error = found.std() / np.sqrt(found.size)
    assert abs(found.mean() - 9) < 4 * error


def test_trees_with_absent_rows_and_other_leaves():
    rows = {
        "a": jnp.asarray(np.r_[LARGE, [[np.inf] * 5]], jnp.float32),
        "count": jnp.ones((11, 2), jnp.int32),
    }
    got = gradient_variance(rows)
    np.testing.assert_allclose(got["a"], LARGE.var(0, ddof=1), rtol=1e-5)
    assert got["count"].tolist() == [0, 0]


def test_fewer_than_two_rows_have_none():
    for weights in (jnp.array([1.0, 0.0]), jnp.zeros(2)):
        assert not gradient_variance(jnp.array([[1.0], [2.0]]), weights).any()


@pytest.mark.slow
@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4])
def test_nearly_equal_rows_keep_their_variance(spread):
    """A row's rounding over the rows' distance, twice since squared, and both ways."""
    random = np.random.default_rng(4)
    rows = 1 + spread * random.normal(size=(7, 2000)).astype(np.float32)
    weights = np.array([1, 2, 0, 3, 1, 1, 4], np.float32)
    shares = np.float64(weights / weights.sum())
    apart = rows - (shares @ rows)[None].astype(np.float64)
    wanted = shares @ apart**2 / (1 - (shares**2).sum())
    order = jnp.array([0, 1, 0, 3, 4, 5, 6])
    (moments,) = array_at_once(rows, (MOMENTS,), jnp.asarray(weights), order)
    halved = moments[2] / moments[0] / (1 - (shares**2).sum())
    for got in (gradient_variance(jnp.asarray(rows), jnp.asarray(weights)), halved):
        error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        assert error <= 4 * np.finfo(np.float32).eps / spread
    equal = jnp.asarray(np.tile(rows[:1], (7, 1)))
    assert not gradient_variance(equal, jnp.asarray(weights)).any()
