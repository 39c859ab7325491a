"""Pairs of rows: conflicts, quantiles of cosines, shares within a distance."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax.diagnostics import (
    conflicting_share,
    cosine_quantiles,
    share_within,
)
from tests._pinned import LARGE

WEIGHTS = np.array([1, 0, 2, 1, 0, 1, 1, 3, 1, 1.0])
QUANTILES = (0.0, 0.1, 0.5, 0.77, 1.0)


def pairs(rows):
    both = itertools.combinations(rows, 2)
    return [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in both]


def gramian(rows):
    return jnp.asarray(rows @ rows.T, jnp.float32)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["all", "some"])
def test_equal_the_loops(weights):
    found = pairs(LARGE if weights is None else LARGE[weights > 0])
    given = None if weights is None else jnp.asarray(weights, jnp.float32)
    G = gramian(LARGE)
    np.testing.assert_allclose(
        conflicting_share(G, given), np.mean(np.array(found) < 0), rtol=1e-6
    )
    np.testing.assert_allclose(
        cosine_quantiles(G, QUANTILES, given),
        np.quantile(found, QUANTILES),
        atol=1e-5,
    )
    within = [np.mean(1 - np.array(found) <= t) for t in (0.3, 0.97, 1.5)]
    np.testing.assert_allclose(
        share_within(G, (0.3, 0.97, 1.5), given), within, rtol=1e-6
    )


@pytest.mark.slow
def test_of_many_narrow_pairs_none_is_beyond_them():
    """More pairs than bfloat16 can count: 2016."""
    rows = np.random.default_rng(0).normal(size=(64, 3000))
    narrow = gramian(rows).astype(jnp.bfloat16)
    wide = narrow.astype(jnp.float32)
    found = cosine_quantiles(narrow, QUANTILES)
    assert found.dtype == jnp.bfloat16
    # an entry is rounded, and so is what is between two
    np.testing.assert_allclose(
        np.float32(found), cosine_quantiles(wide, QUANTILES), atol=2.0**-8
    )
    assert share_within(narrow, (0.5, 1.5)).tolist() == [0, 1]  # all are near 1


def test_zero_rows_have_no_direction():
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 1e-3]])
    assert cosine_quantiles(gramian(rows), (0.5,)).tolist() == pytest.approx([-1])
    assert conflicting_share(gramian(rows)) == pytest.approx(1 / 3)
    assert share_within(gramian(rows), (1.0, 2.0)).tolist() == [0, 1]


def test_no_pair_gives_zero():
    for rows in (np.ones((1, 2)), np.zeros((3, 2)), np.full((3, 2), np.nan)):
        assert conflicting_share(gramian(rows)) == 0
        assert not cosine_quantiles(gramian(rows)).any()
        assert not share_within(gramian(rows), (2.0,)).any()


def test_one_limit_is_no_sequence():
    with pytest.raises(ValueError, match="`max_distances` must be a sequence"):
        share_within(jnp.eye(2), 0.5)
