"""A small convolutional network: no BatchNorm, so that examples stay independent."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx


class Conv3x3(nnx.Module):
    """A 3 x 3 convolution: nine shifted copies side by side, one matrix product.

    It computes what ``nnx.Conv`` with ``SAME`` padding does. It is not ``nnx.Conv``
    because vmap over models makes that a grouped convolution, which XLA runs ten times
    slower inside a scan on a CPU, and because a matrix product is a contraction that
    `consensus_optax.per_example_grad` need not carry out for each example.
    """

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        """Makes the weights, those of ``nnx.Linear`` on 9 * in_features."""
        self.linear = nnx.Linear(9 * in_features, out_features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves pictures of shape (N, H, W, in_features)."""
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [
            x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)
        ]
        return self.linear(jnp.concatenate(shifted, axis=-1))  # (N, H, W, out_features)


class SmallCNN(nnx.Module):
    """Convolutions with ReLU, then one class per cell or one per picture.

    Activations in the padding are set to zero after every layer, so a padded picture
    has the same outputs and gradients as the picture alone.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        width: int = 32,
        depth: int = 3,
        per_cell: bool = True,
        rngs: nnx.Rngs,
    ):
        """Makes the weights.

        Args:
          in_features: channels of a picture.
          num_classes: how many classes to tell apart.
          width: channels of the hidden layers.
          depth: how many 3 x 3 convolutions, at least 1.
          per_cell: predict a class for every cell; else one for the picture, from the
            mean over its cells.
          rngs: the source of the weights.
        """
        if depth < 1:
            raise ValueError(f"`depth` must be at least 1; got {depth}")
        features = [in_features] + depth * [width]
        self.convs = nnx.List(
            [
                Conv3x3(before, after, rngs=rngs)
                for before, after in itertools.pairwise(features)
            ]
        )
        self.head = nnx.Linear(width, num_classes, rngs=rngs)
        self.per_cell = per_cell

    def __call__(self, inputs: jax.Array, inside: jax.Array) -> jax.Array:
        """Predicts the logits of pictures.

        Args:
          inputs: pictures of shape ``(N, H, W, in_features)``.
          inside: ``(N, H, W)``, 1 in the picture and 0 in the padding.

        Returns:
          Logits, ``(N, H, W, num_classes)``, or ``(N, num_classes)`` if not per cell.
        """
        inside = inside[..., None]  # (N, H, W, 1)
        x = inputs
        for conv in self.convs:
            x = nnx.relu(conv(x)) * inside  # (N, H, W, width)
        if not self.per_cell:
            cells = jnp.maximum(inside.sum((1, 2)), 1)  # (N, 1)
            x = x.sum((1, 2)) / cells  # (N, width)
        return self.head(x)
