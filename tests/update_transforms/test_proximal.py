"""FedProx: the proximal gradient in NumPy, many local steps, shared starts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from consensus_optax import training


def loss(params, target):
    return 0.5 * jnp.sum((params - target) ** 2)


def local_rows(mu, rate=0.3, steps=5):
    targets = jnp.array([[2.0, 1.0], [-1.0, 4.0]])
    batches = jnp.broadcast_to(targets[:, None, :], (2, steps, 2))
    local = optax.chain(co.proximal(mu), optax.sgd(rate))
    return training.local_updates(loss, local)(jnp.array([0.5, -0.5]), batches)[1]


def test_local_training_is_of_the_proximal_objective():
    rows = local_rows(0.7)
    for row, target in zip(rows, ([2.0, 1.0], [-1.0, 4.0]), strict=True):
        start = x = np.array([0.5, -0.5])
        for _ in range(5):
            x = x - 0.3 * (x - np.array(target) + 0.7 * (x - start))
        np.testing.assert_allclose(row, start - x, rtol=1e-5)


def test_no_pull_changes_nothing_and_a_strong_one_holds():
    free = training.local_updates(loss, optax.sgd(0.3))
    targets = jnp.broadcast_to(jnp.array([[2.0, 1.0], [-1.0, 4.0]])[:, None], (2, 5, 2))
    np.testing.assert_array_equal(
        local_rows(0.0), free(jnp.array([0.5, -0.5]), targets)[1]
    )
    # where both pull alike half of the way is gone
    half = local_rows(1.0, rate=0.1, steps=200)
    np.testing.assert_allclose(half, [[-0.75, -0.75], [0.75, -2.25]], rtol=1e-4)


def test_leaves_and_dtypes():
    tx = co.proximal(1.0)
    params = {"w": jnp.ones(2, jnp.bfloat16), "n": jnp.array(3)}
    moved = {"w": jnp.full(2, 3.0, jnp.bfloat16), "n": jnp.array(4)}
    grads = {"w": jnp.zeros(2, jnp.bfloat16), "n": jnp.array(0)}
    updates, state = jax.jit(tx.update)(grads, tx.init(params), moved)
    assert updates["w"].dtype == jnp.bfloat16
    assert updates["w"].tolist() == [2.0, 2.0]
    assert int(updates["n"]) == 0
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`mu` must be in \[0, inf\]; got -1"):
        co.proximal(-1.0)
    with pytest.raises(ValueError, match=r"`mu` must be a number in .*; got <func"):
        co.proximal(lambda step: 1.0)
    tx = co.proximal(1.0)
    with pytest.raises(ValueError, match="`params` must be where the client is now"):
        tx.update(jnp.zeros(2), tx.init(jnp.zeros(2)))


def test_all_may_be_donated():
    tx, params = co.proximal(0.1), jnp.ones(2)

    def step(params, state, rows):
        update, state = tx.update(rows, state, params)
        return optax.apply_updates(params, update), state

    run = jax.jit(step, donate_argnums=(0, 1))
    params, state = run(params, tx.init(params), jnp.ones(2))
    assert run(params, state, jnp.ones(2))[0].shape == (2,)
