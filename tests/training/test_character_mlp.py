"""The model of text: what it sees, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from consensus_optax import training


def model(context=3):
    return training.CharacterMLP(
        7, context=context, features=4, width=16, rngs=nnx.Rngs(0)
    )


def test_a_prediction_sees_the_characters_before_it_and_no_others():
    ids = jnp.array([[1, 4, 2, 6, 0, 3, 5, 2, 1]])
    apply, params = training.functional(model())
    with jax.numpy_rank_promotion("allow"):  # biases
        logits = apply(params, ids)
        assert logits.shape == (1, 6, 7)
        for place in range(ids.shape[1]):
            changed = apply(params, ids.at[0, place].set((ids[0, place] + 1) % 7))
            differs = np.any(np.asarray(changed != logits)[0], -1)
            predicted = np.arange(3, 9)
            sees = (predicted - 3 <= place) & (place < predicted)
            np.testing.assert_array_equal(differs, sees)


def test_it_learns_what_follows():
    ids = jnp.tile(jnp.arange(7), 3)[None, :]
    apply, params = training.functional(model())

    def loss(params):
        logits = jax.nn.log_softmax(apply(params, ids))
        return -jnp.take_along_axis(logits, ids[:, 3:, None], -1).mean()

    with jax.numpy_rank_promotion("allow"):
        for _ in range(50):
            grads = jax.jit(jax.grad(loss))(params)
            params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
        assert jnp.all(jnp.argmax(apply(params, ids), -1) == ids[:, 3:])


def test_bad_context():
    with pytest.raises(ValueError, match="`context` must be at least 1; got 0"):
        model(context=0)
