"""Pictures with one label each, as a task."""

import numpy as np

from consensus_optax.tasks._noise import flip_labels
from consensus_optax.tasks._task import Examples, Task, stack_problems

Labelled = tuple[np.ndarray, np.ndarray]  # (N, H, W, C) float32, (N,) int32


def labelled_pictures(
    name: str,
    train: Labelled,
    test: Labelled,
    *,
    num_classes: int,
    label_noise: float,
    num_rows: int,
    group_size: int,
    seed: int,
) -> Task:
    """A task of one problem, whose training labels alone may be wrong."""
    (pictures, labels), (_, truth) = train, test
    noisy = flip_labels(labels, label_noise, num_classes=num_classes, seed=seed)
    majority = np.bincount(labels).argmax()
    return Task(
        name=name,
        problems=(name,),
        train=_one_problem(pictures, noisy),
        test=_one_problem(*test),
        num_classes=num_classes,
        num_rows=num_rows,
        group_size=group_size,
        unit="label",
        trivial="always the commonest class",
        trivial_accuracy=np.array([np.mean(truth == majority)]),
    )


def _one_problem(pictures: np.ndarray, labels: np.ndarray) -> Examples:
    inside = np.ones(pictures.shape[:-1], np.float32)
    weights = np.ones(len(labels), np.float32)
    return stack_problems([Examples(pictures, inside, labels, weights)])
