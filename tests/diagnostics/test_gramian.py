"""The Gramian of a tree of rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax import OuterProduct, diagnostics


def test_sums_over_all_kinds_of_leaves():
    random = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    lazy = OuterProduct(normal(4, 2, 3), normal(4, 2, 5), row_shape=(3, 5))
    rows = {
        "lazy": lazy,
        "low": normal(4, 6).astype(jnp.bfloat16),
        "scalar": normal(4),
        "count": jnp.ones((4,), jnp.int32),
    }
    parts = (lazy.materialize(), rows["low"], rows["scalar"])
    wide = [np.asarray(x.astype(jnp.float32), np.float64) for x in parts]
    wanted = sum(x.reshape(4, -1) @ x.reshape(4, -1).T for x in wide)
    got = diagnostics.gramian(rows)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_needs_a_leaf():
    with pytest.raises(ValueError, match="`rows` must have a floating leaf"):
        diagnostics.gramian({"count": jnp.ones((4,), jnp.int32)})
