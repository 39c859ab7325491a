"""Small networks as plain functions of their parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.quality import _data
from consensus_optax import training

Params = Any


def init_mlp(sizes: list[int]) -> Any:
    """Kernels of He's size and zero biases, from a key."""
    he = jax.nn.initializers.he_normal()

    def init(key: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        keys = jax.random.split(key, len(sizes) - 1)
        shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
        return [(he(k, (m, n)), jnp.zeros(n)) for k, m, n in shapes]

    return init


def mlp(
    params: Any, x: jax.Array, activation: Callable[..., jax.Array] = jax.nn.relu
) -> jax.Array:
    """Outputs of the last layer."""
    *hidden, (kernel, bias) = params
    for k, b in hidden:
        x = activation(x @ k + b)
    return x @ kernel + bias


def of_flax(
    make: Callable[[nnx.Rngs], nnx.Module],
) -> tuple[Callable[[jax.Array], Params], Callable[..., jax.Array]]:
    """``init(key)`` and ``apply(params, ...)`` of a module."""
    apply, _ = training.functional(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    return lambda key: nnx.state(make(nnx.Rngs(key)), nnx.Param), apply


class Classifier(NamedTuple):
    """Of pictures, or of the next character of a text."""

    init: Callable[[jax.Array], Params]
    logits: Callable[[Params, jax.Array], jax.Array]
    loss: Callable[[Params, Any], jax.Array]  # the mean of a batch
    accuracy: Callable[[Params, Any], jax.Array]  # by its labels


def telling(
    init: Callable[[jax.Array], Params],
    logits: Callable[[Params, jax.Array], jax.Array],
    field: str = "pixels",
) -> Classifier:
    """With the cross-entropy to the labels, be they right or not.

    Args:
      init: makes the parameters.
      logits: of inputs.
      field: of a batch, which inputs are.
    """

    def loss(params: Params, batch: Any) -> jax.Array:
        said = logits(params, getattr(batch, field))
        entropy = optax.softmax_cross_entropy_with_integer_labels
        return entropy(said, batch.labels).mean()

    def accuracy(params: Params, batch: Any) -> jax.Array:
        said = logits(params, getattr(batch, field)).argmax(-1)
        return (said == batch.labels).astype(jnp.float32).mean()

    return Classifier(init, logits, loss, accuracy)


def classifier(width: int, pixels: int = _data.PIXELS) -> Classifier:
    """Of pictures: two hidden layers of one width."""
    return telling(init_mlp([pixels, width, width, _data.CLASSES]), mlp)


def convolutional(width: int, depth: int) -> Classifier:
    """Of digits: 3 x 3 convolutions, then the mean over the picture."""
    size, classes = 8, _data.CLASSES
    init, apply = of_flax(
        lambda rngs: training.SmallCNN(
            1, classes, width=width, depth=depth, per_cell=False, rngs=rngs
        )
    )

    def logits(params: Params, pixels: jax.Array) -> jax.Array:
        pictures = pixels.reshape(-1, size, size, 1)
        return apply(params, pictures, jnp.ones(pictures.shape[:-1]))

    return telling(init, logits)
