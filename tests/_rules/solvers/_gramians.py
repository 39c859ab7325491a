"""Gramians to solve problems on: random ones, and those that break solvers."""

import numpy as np


def of(rows):
    rows = np.asarray(rows, np.float32)
    return rows @ rows.T


def common(rng, b):
    """A mean that all rows share."""
    return rng.normal(size=(b, 8 * b)) + 2 * rng.normal(size=(1, 8 * b))


def two_camps(rng, b):
    """A mean that half of the rows share and half oppose."""
    signs = np.sign(rng.normal(size=(b, 1)))
    return rng.normal(size=(b, 8 * b)) + 2 * signs * rng.normal(size=(1, 8 * b))


def conditioned(condition):
    def rows(rng, b):
        left, _ = np.linalg.qr(rng.normal(size=(b, b)))
        right, _ = np.linalg.qr(rng.normal(size=(2 * b, b)))
        return left * np.logspace(0, -np.log10(condition) / 2, b) @ right.T

    return rows


def nearly_equal(rng, b):
    half = rng.normal(size=((b + 1) // 2, 4 * b))
    moved = half[: b // 2] + 1e-5 * rng.normal(size=(b // 2, 4 * b))
    return np.concatenate([half, moved])


def nearly_opposite(rng, b):
    half = rng.normal(size=((b + 1) // 2, 4 * b))
    moved = -half[: b // 2] + 1e-3 * rng.normal(size=(b // 2, 4 * b))
    return np.concatenate([half, moved])


def opposite(rng, b):
    half = rng.normal(size=((b + 1) // 2, 4 * b))
    return np.concatenate([half, -half[: b // 2]])


def repeated(rng, b):
    half = common(rng, (b + 1) // 2)
    return np.concatenate([half, half[: b // 2]])


RANDOM = {
    "independent": lambda rng, b: rng.normal(size=(b, 8 * b)),
    "square": lambda rng, b: rng.normal(size=(b, b)),
    "common": common,
    "two camps": two_camps,
    "lengths": lambda rng, b: (
        rng.normal(size=(b, 4 * b)) * 10 ** rng.uniform(-1.5, 1.5, (b, 1))
    ),
}
ILL_CONDITIONED = {
    "half rank": lambda rng, b: rng.normal(size=(b, max(b // 2, 1))),
    "rank two": lambda rng, b: rng.normal(size=(b, 2)),
    "condition 1e4": conditioned(1e4),
    "condition 1e8": conditioned(1e8),
    "nearly equal": nearly_equal,
    "nearly opposite": nearly_opposite,
    "opposite": opposite,
    "repeated": repeated,
    "tiny": lambda rng, b: 1e-10 * two_camps(rng, b),
    "huge": lambda rng, b: 1e10 * two_camps(rng, b),
    "lengths 1e6": lambda rng, b: (
        rng.normal(size=(b, 4 * b)) * 10 ** rng.uniform(-3, 3, (b, 1))
    ),
}


def stacks(kinds, b, count, seed):
    """(count, B, B), the kinds in turn."""
    rng, makers = np.random.default_rng(seed), list(kinds.values())
    return np.stack([of(makers[i % len(makers)](rng, b)) for i in range(count)])
