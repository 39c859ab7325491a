"""What a data set becomes: stacked arrays that every model and rule can share."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray

NOT_SCORED = -1  # a target outside the picture


class Examples(NamedTuple):
    """Pictures and what to predict, padded to one shape.

    A target is either one label per picture (``targets`` of shape ``(N,)``) or one
    label per cell (``(N, H, W)``); nothing else tells the two kinds of task apart.
    """

    inputs: Array  # (..., N, H, W, C) float32
    inside: Array  # (..., N, H, W) float32: 1 in the picture, 0 in the padding
    targets: Array  # (..., N) or (..., N, H, W) int32, NOT_SCORED in the padding
    weights: Array  # (..., N) float32: 1 for a real example, 0 for a padded one


class Task(NamedTuple):
    """Several problems of one kind; one model is trained on each of them.

    All problems have the same shapes, so that one compiled program trains the models
    of all of them. A problem with fewer examples is padded by examples of weight 0.
    """

    name: str
    problems: tuple[str, ...]  # the K names of the problems
    train: Examples  # leaves (K, N, ...)
    test: Examples  # leaves (K, M, ...)
    num_classes: int
    num_rows: int | None  # rows drawn for a step; None: all of them, every step
    group_size: int  # examples averaged into one row
    unit: str  # what is predicted: "pixel" or "label"
    trivial: str  # a prediction that needs no learning ...
    trivial_accuracy: np.ndarray  # ... and its test accuracy, (K,)


def pad_examples(
    inputs: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    *,
    num_examples: int,
    size: tuple[int, int],
) -> Examples:
    """Pads pictures and their per-cell targets to one size and one number.

    Args:
      inputs: pictures of shape ``(h, w, C)``, each of its own size.
      targets: integer labels of shape ``(h, w)``, one array for each picture.
      num_examples: how many examples to return; the missing ones get weight 0.
      size: the height and width to pad to, at the lower right.

    Returns:
      Examples with leaves ``(num_examples, *size, ...)``.

    Examples:
      >>> picture, labels = np.ones((2, 3, 1)), np.zeros((2, 3), int)
      >>> padded = pad_examples([picture], [labels], num_examples=2, size=(4, 4))
      >>> padded.inputs.shape, padded.weights.tolist(), padded.targets[0, 0].tolist()
      ((2, 4, 4, 1), [1.0, 0.0], [0, 0, 0, -1])
    """
    shape = (num_examples, *size)
    out = Examples(
        inputs=np.zeros((*shape, inputs[0].shape[-1]), np.float32),
        inside=np.zeros(shape, np.float32),
        targets=np.full(shape, NOT_SCORED, np.int32),
        weights=(np.arange(num_examples) < len(inputs)).astype(np.float32),
    )
    for i, (picture, labels) in enumerate(zip(inputs, targets, strict=True)):
        h, w = labels.shape
        out.inputs[i, :h, :w] = picture
        out.inside[i, :h, :w] = 1
        out.targets[i, :h, :w] = labels
    return out


def stack_problems(problems: Sequence[Examples]) -> Examples:
    """Stacks problems of one shape along a new leading axis.

    Args:
      problems: examples whose leaves have equal shapes.

    Returns:
      Examples with leaves ``(len(problems), ...)``.

    Examples:
      >>> one = pad_examples([np.ones((2, 2, 1))], [np.ones((2, 2), int)],
      ...                    num_examples=1, size=(2, 2))
      >>> stack_problems([one, one, one]).inputs.shape
      (3, 1, 2, 2, 1)
    """
    return Examples(*(np.stack(leaves) for leaves in zip(*problems, strict=True)))
