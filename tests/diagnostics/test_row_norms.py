"""Lengths of rows, factored and not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax.diagnostics import row_norms
from tests._stacks import B, factored


def test_equals_the_loops():
    rows, _, stood_for = factored()
    wanted = np.linalg.norm(np.concatenate(stood_for, 1), axis=1)
    got = jax.jit(row_norms)({**rows, "count": jnp.ones(B, jnp.int32)})
    np.testing.assert_allclose(got, wanted, rtol=1e-6)  # 54 products of float32


def test_a_broken_row_spoils_its_own_norm():
    norms = row_norms(jnp.array([[3.0, 4.0], [jnp.inf, 0.0], [1e20, 0.0]]))
    assert norms[0] == 5
    assert not np.isfinite(norms[1:]).any()


def test_needs_a_leaf_with_a_gradient():
    with pytest.raises(ValueError, match="`rows` must have a floating leaf; got none"):
        row_norms({"count": jnp.ones(3, jnp.int32)})
