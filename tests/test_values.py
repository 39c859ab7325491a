"""Every seed on one small stack, by hand: what a change of a method would change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co

ROWS = jnp.array([[-4.0, 1.0, 2.0], [6.0, 1.0, 0.5]])
# Squared lengths 21 and 37.25, inner product -22: a cosine of -0.787.
FIRST, SECOND = np.sqrt(21), np.sqrt(37.25)
UNITS = np.asarray(ROWS) / [[FIRST], [SECOND]]
# AdaCons: <mean, g_i> / |g_i| is -0.5 / |g_1| and 7.625 / |g_2|.
A = np.array([-0.5 / FIRST, 7.625 / SECOND])

VALUES = {
    "mean": (co.mean(), [1, 1, 1.25]),
    "normalized_mean": (co.normalized_mean(), UNITS.mean(0)),
    "sign_consensus": (co.sign_consensus(), [0, 1, 0.5]),
    "rescaled": (co.sign_consensus(rescale=True), [0, 1.5, 0.75]),
    "quorum": (co.sign_consensus(0.51, "agreeing_mean"), [0, 1, 1.25]),
    "AND-mask": (co.sign_consensus(magnitude="mean"), [0, 1, 1.25]),
    "geometric": (co.sign_consensus(magnitude="geometric"), [0, 1, 1]),
    "cosine_filter": (co.cosine_filter(), [0, 0, 0]),
    "cosine_filter, wide": (co.cosine_filter(1.79), [1, 1, 1.25]),
    "by leaf": (co.per_leaf(co.cosine_filter()), [0, 0, 0]),
    "subspace_weighting": (co.subspace_weighting(), A @ UNITS / A.sum()),
    "rescaled to the mean norm": (
        co.subspace_weighting(length="mean_norm"),
        A @ UNITS / A.sum() * (FIRST + SECOND) / 2,
    ),
    "among": (co.among(co.cosine_filter(1.79), co.sign_consensus()), [0, 1, 0.5]),
}


@pytest.mark.parametrize("name", VALUES)
def test_value(name):
    reducer, wanted = VALUES[name]
    params = jnp.zeros(3)
    update, state = jax.jit(reducer.update)(ROWS, reducer.init(params), params)
    size = np.abs(wanted).max()
    np.testing.assert_allclose(update, wanted, rtol=0, atol=1e-6 * size)
    assert state.consensus_ready == (size > 0)
