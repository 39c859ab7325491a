"""Steps that do not go against what comes in, against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co

pytestmark = pytest.mark.standard_promotion  # optax mixes types in Adam

RANDOM = np.random.default_rng(3)
SHAPES = {"a": (7, 2), "b": (5,), "c": ()}
STREAM = {k: np.float32(RANDOM.normal(0.1, 1, (20, *s))) for k, s in SHAPES.items()}
STREAM["b"][4] = 0
PARAMS = {name: jnp.ones(shape) for name, shape in SHAPES.items()}


def run(optimizer):
    @jax.jit
    def over(stream):
        def step(state, update):
            update, state = optimizer.update(update, state, PARAMS)
            return state, (update, getattr(state, "kept", 0.0))

        return jax.lax.scan(step, optimizer.init(PARAMS), stream)

    return over(STREAM)


@pytest.mark.parametrize("rescale", [True, False])
def test_equals_the_optimizer_and_a_mask(rescale):
    base = optax.adamw(0.1, weight_decay=0.3)
    plain_state, (plain, _) = run(base)
    state, (steps, kept) = run(co.cautious(base, rescale))
    jax.tree.map(np.testing.assert_array_equal, state.inner, plain_state)
    masks = {}
    for name, step in plain.items():
        step = np.asarray(step)
        masks[name] = (step * STREAM[name] < 0).reshape(len(step), -1)
        asked = (STREAM[name] != 0).reshape(len(step), -1).sum(1, keepdims=True)
        share = masks[name].sum(1, keepdims=True) / np.maximum(asked, 1)
        share = np.maximum(share, 1e-3)
        expected = masks[name] * step.reshape(len(step), -1)
        expected = expected / share if rescale else expected
        got = np.asarray(steps[name]).reshape(len(step), -1)
        np.testing.assert_allclose(got, expected, rtol=4 * 2**-24)  # two roundings
    counts = sum(mask.sum(1) for mask in masks.values())
    np.testing.assert_allclose(kept, counts / 20, rtol=1e-6)  # of 20 coordinates


def test_no_coordinate_goes_against_what_comes_in():
    _, (steps, _) = run(co.cautious(optax.sgd(1.0, momentum=0.95)))
    for name, step in steps.items():
        assert not np.any(np.asarray(step) * STREAM[name] > 0)


def test_tiny_products_keep_their_sign():
    """1e-30 times 1e-30 is zero in float32, and no coordinate may stop for that."""
    params = jnp.zeros(2)
    tx = co.cautious(optax.sgd(1.0))
    step, _ = tx.update(jnp.full(2, 1e-30), tx.init(params), params)
    np.testing.assert_array_equal(step, np.full(2, -1e-30, np.float32))


def test_a_consensus_on_few_coordinates_is_not_made_longer():
    """One coordinate of a hundred agrees: its step is what the optimizer's is."""
    params, few = jnp.zeros(100), jnp.zeros(100).at[3].set(0.5)
    tx = co.cautious(optax.sgd(1.0, momentum=0.9))
    step, state = tx.update(few, tx.init(params), params)
    np.testing.assert_array_equal(step, -few)
    np.testing.assert_allclose(state.kept, 0.01, rtol=1e-6)


def test_rows_are_refused():
    tx = co.cautious(optax.sgd(1.0))
    with pytest.raises(ValueError, match="reducer"):
        tx.update(jnp.ones((4, 2)), tx.init(jnp.ones(2)), jnp.ones(2))


def test_leaves_without_gradients_pass():
    params = {"w": jnp.ones(2), "n": jnp.arange(3)}
    tx = co.cautious(optax.identity())
    given = {"w": jnp.ones(2), "n": jnp.zeros(3, jnp.int32)}
    step, _ = tx.update(given, tx.init(params), params)
    np.testing.assert_array_equal(step["n"], given["n"])
