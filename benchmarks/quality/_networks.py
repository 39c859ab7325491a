"""Small networks as plain functions of their parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.quality import _data


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


class Classifier(NamedTuple):
    """Of pictures: two hidden layers of one width."""

    init: Callable[[jax.Array], Any]
    logits: Callable[[Any, jax.Array], jax.Array]
    loss: Callable[[Any, _data.Pictures], jax.Array]  # the mean of a batch


def classifier(width: int, pixels: int = _data.PIXELS) -> Classifier:
    """With the cross-entropy to the labels, be they right or not."""

    def loss(params: Any, batch: _data.Pictures) -> jax.Array:
        logits = mlp(params, batch.pixels)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return losses.mean()

    sizes = [pixels, width, width, _data.CLASSES]
    return Classifier(init_mlp(sizes), mlp, loss)
