"""One 2 x 3 and one 10 x 5 stack on which every rule is pinned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

SMALL = np.array([[-4.0, 1.0, 2.0], [6.0, 1.0, 0.5]])
# Rows that lean one way, one of them the other, one an outlier in length.
_RANDOM = np.random.default_rng(105)
LARGE = np.array([1.0, -0.5, 0.25, 2.0, 0.0]) + _RANDOM.normal(size=(10, 5))
LARGE[6] *= -1
LARGE[8] *= 20
LARGE = LARGE.astype(np.float32).astype(np.float64)


@functools.cache
def _first_update(reducer):
    """Compiled once for one reducer and shape."""

    def update(rows, weights, extra):
        params = jnp.zeros(rows.shape[1:])
        state = reducer.init(params)
        return reducer.update(rows, state, params, weights=weights, **extra)[0]

    return jax.jit(update)


def first_update(reducer, rows, weights=None, **extra):
    """The update of a reducer at its first step, for rows (B, P)."""
    weights = np.ones(len(rows)) if weights is None else weights
    rows, weights = jnp.asarray(rows, jnp.float32), jnp.asarray(weights, jnp.float32)
    return np.asarray(_first_update(reducer)(rows, weights, extra))


def check(reducer, reference, rtol=1e-6):
    """Asserts that a reducer gives what the loop gives: both stacks, two weightings."""
    for rows in (SMALL, LARGE):
        for weights in (np.ones(len(rows)), 0.5 + np.arange(len(rows)) % 3):
            wanted = reference(rows.tolist(), weights.tolist())
            got = first_update(reducer, rows, weights)
            np.testing.assert_allclose(
                got, wanted, rtol=0, atol=rtol * np.abs(wanted).max()
            )
