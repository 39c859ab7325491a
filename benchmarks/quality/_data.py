"""Pictures with labels, some of them wrong, split anew for every seed."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from consensus_optax import tasks

CLASSES, PIXELS = 10, 64  # of digits

# By name: the task of a seed, how many are for validation and as many for testing, and
# pixels. Of clothes 5000 are drawn anew for every seed, the others are shared out anew.
SETS = {
    "digits": (tasks.digits, 360, PIXELS),
    "MNIST": (tasks.mnist_5000, 1000, 784),
    "Fashion-MNIST": (
        functools.partial(tasks.fashion_mnist, num_train=4000, num_test=1000),
        1000,
        784,
    ),
}


class Pictures(NamedTuple):
    """Examples of one part; leaves (N, ...)."""

    pixels: Any  # (N, P) float32
    labels: Any  # (N,) int32, some of them wrong
    truth: Any  # (N,) int32


def split(
    seed: int, noise: float = 0.0, data: str = "digits"
) -> tuple[Pictures, Pictures, Pictures]:
    """Train, valid, test; labels of the first two are wrong at the same share."""
    make, kept, size = SETS[data]
    task = make(seed=seed)
    both = lambda pick: np.concatenate([pick(x)[0] for x in (task.test, task.train)])
    pixels = both(lambda part: part.inputs).reshape(-1, size)
    truth = both(lambda part: part.targets)
    ends = (2 * kept, None), (0, kept), (kept, 2 * kept)
    parts = [(pixels[slice(*end)], truth[slice(*end)]) for end in ends]
    noises = noise, noise, 0.0
    train, valid, test = (
        Pictures(x, tasks.flip_labels(y, share, num_classes=CLASSES, seed=seed), y)
        for (x, y), share in zip(parts, noises, strict=True)
    )
    return train, valid, test


def stacked(parts: list[Any]) -> Any:
    """Replicates along a leading axis."""
    return jax.tree.map(lambda *x: np.stack(x), *parts)
