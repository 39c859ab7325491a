"""What is tried in every order: a small loss, its rows, and an update of them."""

import jax
import jax.numpy as jnp
import numpy as np

import consensus_optax as co

PARAMS = {"a": jnp.ones((16, 12)), "b": jnp.zeros(12)}
BATCH = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16)), jnp.float32)


def loss(params, x):
    return jnp.mean((x @ params["a"] + params["b"]) ** 2)


def rows_of(**options):
    return co.per_example_grad(loss, **options)(PARAMS, BATCH)


def gradient():
    return jax.grad(loss)(PARAMS, BATCH)


def first_update(tx, rows=None, **extra):
    rows = rows_of() if rows is None else rows
    return tx.update(rows, tx.init(PARAMS), PARAMS, **extra)[0]


def assert_close(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)  # sums of 16 and of 4


def has_parameter_shapes(updates):
    return jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, PARAMS)
