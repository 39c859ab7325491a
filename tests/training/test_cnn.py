"""The small CNN: a convolution like flax's own, and blind to padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from consensus_optax import training

pytestmark = pytest.mark.slow


def pictures(key, *shape):
    return jax.random.normal(jax.random.key(key), shape)


def test_convolution_is_that_of_flax():
    ours = training.Conv3x3(2, 5, rngs=nnx.Rngs(0))
    theirs = nnx.Conv(2, 5, (3, 3), padding="SAME", rngs=nnx.Rngs(0))
    theirs.kernel[...] = ours.linear.kernel[...].reshape(3, 3, 2, 5)
    x = pictures(0, 2, 4, 6, 2)
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-5)


@pytest.mark.parametrize("per_cell", [True, False])
def test_padding_changes_neither_outputs_nor_gradients(per_cell):
    model = training.SmallCNN(3, 4, width=6, per_cell=per_cell, rngs=nnx.Rngs(0))
    apply, params = training.functional(model)
    x = pictures(0, 2, 4, 5, 3)
    inside = jnp.ones((2, 4, 5))
    pad = ((0, 0), (0, 3), (0, 2))
    wide_x, wide_inside = jnp.pad(x, (*pad, (0, 0))), jnp.pad(inside, pad)

    def total(params, x, inside):
        out = apply(params, x, inside)
        return ((out[:, :4, :5] if per_cell else out) ** 2).sum()

    tight = jax.value_and_grad(total)(params, x, inside)
    wide = jax.value_and_grad(total)(params, wide_x, wide_inside)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), tight, wide
    )


def test_shapes():
    x, inside = pictures(0, 2, 4, 5, 3), jnp.ones((2, 4, 5))
    cells = training.SmallCNN(3, 7, width=4, depth=1, rngs=nnx.Rngs(0))
    labels = training.SmallCNN(3, 7, width=4, per_cell=False, rngs=nnx.Rngs(0))
    assert cells(x, inside).shape == (2, 4, 5, 7)
    assert labels(x, inside).shape == (2, 7)


def test_wrong_depth():
    with pytest.raises(ValueError, match="`depth` must be at least 1; got 0"):
        training.SmallCNN(3, 4, depth=0, rngs=nnx.Rngs(0))
