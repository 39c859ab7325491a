"""Digits: 1797 handwritten digits of 8 x 8 pixels, with label noise on request."""

import numpy as np

from consensus_optax.tasks._noise import flip_labels
from consensus_optax.tasks._task import Examples, Task, stack_problems

NUM_CLASSES = 10
NUM_TEST = 360


def digits(
    *, label_noise: float = 0.0, num_rows: int = 4, group_size: int = 16, seed: int = 0
) -> Task:
    """Handwritten digits; the labels of the training set may be made noisy.

    One row is the mean gradient of a group of examples: with rows of one example and
    large batches hardly any coordinate is shared by all of them.

    Args:
      label_noise: share of the training labels replaced by another class, in [0, 1].
        The test labels stay clean.
      num_rows: rows of one step.
      group_size: examples averaged into one row.
      seed: split into training and test set, and which labels are wrong.

    Returns:
      A task with one problem.

    Examples:
      >>> task = digits(label_noise=0.4)
      >>> task.train.inputs.shape
      (1, 1437, 8, 8, 1)
    """
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(classes))
    pictures = (pixels[order].reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    labels = classes[order].astype(np.int32)
    noisy = flip_labels(
        labels[NUM_TEST:], label_noise, num_classes=NUM_CLASSES, seed=seed
    )
    majority = np.bincount(labels[NUM_TEST:]).argmax()
    return Task(
        name="digits",
        problems=("digits",),
        train=_one_problem(pictures[NUM_TEST:], noisy),
        test=_one_problem(pictures[:NUM_TEST], labels[:NUM_TEST]),
        num_classes=NUM_CLASSES,
        num_rows=num_rows,
        group_size=group_size,
        unit="label",
        trivial="always the commonest class",
        trivial_accuracy=np.array([np.mean(labels[:NUM_TEST] == majority)]),
    )


def _one_problem(pictures: np.ndarray, labels: np.ndarray) -> Examples:
    inside = np.ones(pictures.shape[:-1], np.float32)
    weights = np.ones(len(labels), np.float32)
    return stack_problems([Examples(pictures, inside, labels, weights)])
