"""Digits: 1797 handwritten digits of 8 x 8 pixels, with label noise on request."""

import numpy as np

from consensus_optax.tasks._pictures import labelled_pictures
from consensus_optax.tasks._task import Task

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
    return labelled_pictures(
        "digits",
        (pictures[NUM_TEST:], labels[NUM_TEST:]),
        (pictures[:NUM_TEST], labels[:NUM_TEST]),
        num_classes=NUM_CLASSES,
        label_noise=label_noise,
        num_rows=num_rows,
        group_size=group_size,
        seed=seed,
    )
