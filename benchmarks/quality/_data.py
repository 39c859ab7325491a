"""Digits, split anew for every seed."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from consensus_optax import tasks

CLASSES, PIXELS = 10, 64
NUM_VALID = NUM_TEST = 360


class Digits(NamedTuple):
    """Examples of one part; leaves (N, ...)."""

    pixels: Any  # (N, 64) float32
    labels: Any  # (N,) int32, some of them wrong
    truth: Any  # (N,) int32


def split(seed: int, noise: float = 0.0) -> tuple[Digits, Digits, Digits]:
    """Train, valid, test; labels of the first two are wrong at the same share."""
    from sklearn.datasets import load_digits

    pixels, truth = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(truth))
    pixels = (pixels[order] / 16).astype(np.float32)
    truth = truth[order].astype(np.int32)
    flipped = tasks.flip_labels(truth, noise, num_classes=CLASSES, seed=seed)
    parts = []
    for start, end in (
        (NUM_VALID + NUM_TEST, None),
        (0, NUM_VALID),
        (NUM_VALID, NUM_VALID + NUM_TEST),
    ):
        cut = slice(start, end)
        parts.append(Digits(pixels[cut], flipped[cut], truth[cut]))
    train, valid, test = parts
    return train, valid, test._replace(labels=test.truth)


def stacked(parts: list[Any]) -> Any:
    """Replicates along a leading axis."""
    return jax.tree.map(lambda *x: np.stack(x), *parts)
