"""Data that the examples share: 1797 handwritten digits, in batches."""

import os
from collections.abc import Iterator

import numpy as np
from sklearn.datasets import load_digits

Arrays = tuple[np.ndarray, np.ndarray]


def num_steps(full: int = 300, smoke: int = 150) -> int:
    """How long to train."""
    return smoke if os.environ.get("CONSENSUS_OPTAX_SMOKE") else full


def digits() -> tuple[Arrays, Arrays]:
    """(pixels, labels) of the training set and of the test set of 360."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x, y = (pixels[order] / 16).astype(np.float32), labels[order].astype(np.int32)
    return (x[360:], y[360:]), (x[:360], y[:360])


def batches(data: Arrays, steps: int, size: int = 64) -> Iterator[Arrays]:
    """Batches at random, the same in every run."""
    rng = np.random.default_rng(1)
    for _ in range(steps):
        chosen = rng.choice(len(data[0]), size, replace=False)
        yield data[0][chosen], data[1][chosen]
