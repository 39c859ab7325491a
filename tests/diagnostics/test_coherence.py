"""Coherence and diversity: known values, weights, absent rows, scale."""

import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax.diagnostics import coherence, gradient_diversity
from tests._pinned import LARGE


def test_orthogonal_equal_and_opposite_rows():
    assert coherence(jnp.eye(5)) == 1
    assert coherence(jnp.ones((5, 5))) == 5
    opposite = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    assert coherence(opposite) == 0
    assert gradient_diversity(opposite) == jnp.inf
    assert coherence(jnp.zeros((3, 3))) == gradient_diversity(jnp.zeros((3, 3))) == 0


def test_equals_the_loop():
    weights = 0.5 + np.arange(10) % 3
    total = sum(w * g for w, g in zip(weights, LARGE, strict=True))
    apart = sum((w * g) @ (w * g) for w, g in zip(weights, LARGE, strict=True))
    gramian = jnp.asarray(LARGE @ LARGE.T, jnp.float32)
    got = coherence(gramian, jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(got, total @ total / apart, rtol=1e-5)
    inverse = gradient_diversity(gramian, jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(inverse, 1 / got, rtol=1e-5)


def test_equal_rows_are_worth_their_effective_number():
    weights = jnp.array([1.0, 1.0, 2.0])
    np.testing.assert_allclose(coherence(jnp.ones((3, 3)), weights), 16 / 6, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_is_scale_free(scale):
    gramian = jnp.asarray(LARGE @ LARGE.T, jnp.float32)
    np.testing.assert_allclose(
        coherence(gramian * scale), coherence(gramian), rtol=1e-5
    )


def test_absent_and_broken_rows_do_not_count():
    rows = np.concatenate([LARGE, np.full((1, 5), np.nan), LARGE[:1]])
    gramian = jnp.asarray(rows @ rows.T, jnp.float32)
    weights = jnp.ones(12).at[11].set(0)
    wanted = coherence(jnp.asarray(LARGE @ LARGE.T, jnp.float32))
    np.testing.assert_allclose(coherence(gramian, weights), wanted, rtol=1e-6)
