"""What is minimized and what is reported, for labels and for cells alike."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax.tasks._task import Array, Examples


class Scores(NamedTuple):
    """Means over the real examples of one problem."""

    loss: jax.Array  # cross-entropy
    accuracy: jax.Array  # share of the scored pixels (or labels) that are right
    solved: jax.Array  # share of the examples with every pixel right


def example_losses(logits: Array, targets: Array) -> jax.Array:
    """Cross-entropy of each example: the mean over its scored pixels.

    Args:
      logits: predictions of shape ``(N, [H, W,] classes)``.
      targets: labels of shape ``(N, [H, W])``; negative ones are not scored.

    Returns:
      The losses, ``(N,)``. An example without a scored pixel has loss 0.

    Examples:
      >>> losses = example_losses(jnp.zeros((2, 10)), jnp.array([3, -1]))
      >>> [round(float(loss), 3) for loss in losses]
      [2.303, 0.0]
    """
    scored, labels = _scored(targets)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return _mean(losses, scored, _cells(targets))


def scores(logits: Array, examples: Examples) -> Scores:
    """Loss, accuracy and solved share of one problem; padding counts for nothing.

    An example is as heavy as any other, however many pixels it has.

    Args:
      logits: predictions of shape ``(N, [H, W,] classes)``.
      examples: the examples they belong to.

    Returns:
      Three scalars.

    Examples:
      >>> logits = jax.nn.one_hot(jnp.array([[[1, 2]], [[3, 3]]]), 4) * 99
      >>> targets = jnp.array([[[1, 2]], [[0, 3]]])
      >>> ones = jnp.ones((2, 1, 2))
      >>> examples = Examples(ones[..., None], ones, targets, jnp.ones(2))
      >>> found = scores(logits, examples)
      >>> float(found.accuracy), float(found.solved)
      (0.75, 0.5)
    """
    scored, labels = _scored(examples.targets)
    right = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
    accuracy = _mean(right, scored, _cells(labels))  # (N,)
    per_example = Scores(
        loss=example_losses(logits, examples.targets),
        accuracy=accuracy,
        solved=(accuracy == 1).astype(jnp.float32),
    )
    weights = jnp.asarray(examples.weights)
    return Scores(*(_mean(values, weights, (0,)) for values in per_example))


def _scored(targets: Array) -> tuple[jax.Array, jax.Array]:
    targets = jnp.asarray(targets)
    return (targets >= 0).astype(jnp.float32), jnp.maximum(targets, 0)


def _cells(targets: Array) -> tuple[int, ...]:
    return tuple(range(1, targets.ndim))


def _mean(values: jax.Array, weights: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    total = weights.sum(axes)
    return (values * weights).sum(axes) / positive_or_one(total)
