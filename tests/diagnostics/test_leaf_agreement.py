"""Agreement leaf by leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax import OuterProduct
from consensus_optax.diagnostics import leaf_agreement


def rows():
    return {
        "agree": jnp.array([[1.0, -2.0], [3.0, -1.0], [2.0, -9.0]]),
        "differ": jnp.array([[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]]),
        "count": jnp.ones((3, 2), jnp.int32),
        "empty": jnp.ones((3, 0)),
    }


@pytest.mark.parametrize(("measure", "full"), [("signs", 1.0), ("purity", 1.0)])
def test_full_agreement_and_none(measure, full):
    got = jax.jit(lambda g: leaf_agreement(g, measure=measure))(rows())
    assert got["agree"] == full
    assert got["differ"] == got["count"] == got["empty"] == 0


def test_equals_the_loops():
    random = np.random.default_rng(0)
    matrix, weights = random.normal(size=(5, 6)), np.array([1, 2, 0.5, 0, 1.0])
    given = (jnp.asarray(matrix, jnp.float32), jnp.asarray(weights, jnp.float32))
    kept, w = matrix[weights > 0], weights[weights > 0]
    total, size = w @ kept, w @ np.abs(kept)
    signs = np.abs(w @ np.sign(kept)).mean() / w.sum()
    coherence = total @ total / (w**2 @ (kept**2).sum(1))
    np.testing.assert_allclose(leaf_agreement(*given, "signs"), signs, rtol=1e-5)
    purity = np.mean(np.abs(total) / size)
    np.testing.assert_allclose(leaf_agreement(*given, "purity"), purity, rtol=1e-5)
    np.testing.assert_allclose(leaf_agreement(*given), coherence, rtol=1e-5)


@pytest.mark.parametrize("measure", ["coherence", "signs", "purity"])
def test_a_row_broken_in_one_leaf_is_absent_from_all(measure):
    broken = rows()
    broken["differ"] = broken["differ"].at[1].set(jnp.nan)
    got = leaf_agreement(broken, measure=measure)
    kept = jax.tree.map(lambda leaf: leaf[jnp.array([0, 2])], rows())
    wanted = leaf_agreement(kept, measure=measure)
    for name in got:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-6)


@pytest.mark.parametrize("measure", ["coherence", "signs", "purity"])
def test_nobody_agrees_on_nothing(measure):
    got = leaf_agreement(rows(), jnp.zeros(3), measure)
    assert not any(jax.tree.leaves(got))


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["coherence", "signs", "purity"])
def test_lazy_rows(measure):
    random = np.random.default_rng(1)
    normal = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    lazy = OuterProduct(normal(4, 1, 3), normal(4, 1, 5), row_shape=(3, 5))
    got = leaf_agreement(lazy, measure=measure)
    wanted = leaf_agreement(lazy.materialize(), measure=measure)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
