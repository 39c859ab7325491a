"""The models of text: what a prediction sees, and that they learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import consensus_optax as co
from consensus_optax import training

pytestmark = pytest.mark.slow

CONTEXT = 3
MODELS = {
    "mlp": lambda: training.CharacterMLP(
        7, context=CONTEXT, features=4, width=16, rngs=nnx.Rngs(0)
    ),
    "transformer": lambda: training.CharacterTransformer(
        7, length=21, features=8, rngs=nnx.Rngs(0)
    ),
}
# Of every model: the first character that a prediction is of, and whether one at
# `target` sees one at `place`.
FIRST = {"mlp": CONTEXT, "transformer": 1}
SEES = {
    "mlp": lambda target, place: (target - CONTEXT <= place) & (place < target),
    "transformer": lambda target, place: place < target,
}


@pytest.fixture(params=MODELS)
def kind(request):
    with jax.numpy_rank_promotion("allow"):  # biases
        yield request.param


def test_a_prediction_sees_characters_before_it_and_no_others(kind):
    ids = jnp.array([[1, 4, 2, 6, 0, 3, 5, 2, 1]])
    size = ids.shape[1]
    apply, params = training.functional(MODELS[kind]())
    apply = jax.jit(apply)
    logits = apply(params, ids)
    target = np.arange(FIRST[kind], FIRST[kind] + logits.shape[1])
    assert logits.shape == (1, len(target), 7)
    assert target[-1] in (size - 1, size)
    for place in range(size):
        changed = apply(params, ids.at[0, place].set((ids[0, place] + 1) % 7))
        differs = np.any(np.asarray(changed != logits)[0], -1)
        np.testing.assert_array_equal(differs, SEES[kind](target, place))


def test_it_learns_what_follows(kind):
    ids = jnp.tile(jnp.arange(7), 3)[None, :]
    targets = ids[:, FIRST[kind] :]
    apply, params = training.functional(MODELS[kind]())
    predict = lambda params: apply(params, ids)[:, : targets.shape[1]]

    def loss(params):
        logits = jax.nn.log_softmax(predict(params))
        return -jnp.take_along_axis(logits, targets[..., None], -1).mean()

    grad = jax.jit(jax.grad(loss))
    for _ in range(50):
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grad(params))
    assert jnp.all(jnp.argmax(jax.jit(predict)(params), -1) == targets)


def test_kernels_of_the_transformer_stay_factored():
    """Of a text that is short against the features; the rest are arrays."""
    model = training.CharacterTransformer(40, length=6, features=32, rngs=nnx.Rngs(0))
    apply, params = training.functional(model)
    loss = lambda params, ids: (apply(params, ids) ** 2).mean()
    with jax.numpy_rank_promotion("allow"):
        rows_of = jax.jit(co.per_example_grad(loss))
        rows = rows_of(nnx.to_pure_dict(params), jnp.arange(12).reshape(2, 6))
    leaves = jax.tree.leaves_with_path(rows, is_leaf=co.is_outer_product)
    kernels = [leaf for path, leaf in leaves if path[-1].key == "kernel"]
    assert len(kernels) == 2 * 6 + 1
    assert all(co.is_outer_product(leaf) for leaf in kernels)


def test_bad_context():
    with pytest.raises(ValueError, match="`context` must be at least 1; got 0"):
        training.CharacterMLP(7, context=0, rngs=nnx.Rngs(0))


def test_a_text_that_is_too_long():
    with pytest.raises(ValueError, match="at most 21 characters"):
        MODELS["transformer"]()(jnp.zeros((1, 22), int))
