"""Robust rules that look along the widest direction, or near a row, as published.

As in tests/_reference.py. Covariances are those of the rows, P x P, in float64, and
eigenvectors NumPy's; what ours adds is as in tests/_reference_robust.py.
"""

import itertools
import math

import numpy as np

from tests._reference import dot, mean
from tests._reference_robust import kept, majority, shares_of_smallest, squared_distance


def covariance(rows, counts):
    """Of rows counted by numbers, and their mean."""
    center = np.array(mean(rows, counts))
    total = np.zeros((len(center), len(center)))
    for g, c in zip(rows, counts, strict=True):
        off = np.array(g) - center
        total += c * np.outer(off, off)
    return total / sum(counts), center


def smea(num_byzantine):
    def rule(rows, weights):
        n = len(rows)
        subsets = list(itertools.combinations(range(n), n - majority(num_byzantine, n)))
        spreads = []
        for subset in subsets:
            matrix, _ = covariance([rows[i] for i in subset], [1.0] * len(subset))
            spreads.append(max(np.linalg.eigvalsh(matrix)[-1], 0.0))
        rounding = 1e-14 * max(max(map(abs, g)) for g in rows) ** 2
        means = [
            mean([rows[i] for i in subset], [weights[i] for i in subset])
            for subset, spread in zip(subsets, spreads, strict=True)
            if spread <= min(spreads) * (1 + 1e-5) + rounding
        ]
        return mean(means, [1.0] * len(means))

    return rule


def caf(num_byzantine):
    def rule(rows, weights):
        n = len(rows)
        f = majority(num_byzantine, n)
        counts, best, least = [1.0] * n, [1.0] * n, np.inf
        for step in range(n):
            if step > 0 and (sum(counts) <= n - 2 * f or least == 0):
                break
            matrix, center = covariance(rows, counts)
            values, vectors = np.linalg.eigh(matrix)
            if values[-1] < least * (1 - 1e-5):
                best, least = counts, max(values[-1], 0.0)
            scores = []
            for g, c in zip(rows, counts, strict=True):
                score = 0.0
                for value, v in zip(values, vectors.T, strict=True):
                    if c > 0 and value >= values[-1] * (1 - 1e-5):
                        score += sum((np.array(g) - center) * v) ** 2
                scores.append(score)
            if max(scores) > 0:
                counts = [
                    c * (1 - s / max(scores))
                    for c, s in zip(counts, scores, strict=True)
                ]
        return kept(rows, weights, best)

    return rule


def monna(num_byzantine, index=0):
    def rule(rows, weights):
        far = [squared_distance(rows[index], g) for g in rows]
        count = len(rows) - majority(num_byzantine, len(rows))
        return kept(rows, weights, shares_of_smallest(far, count))

    return rule


def divide_and_conquer(num_byzantine, filter_fraction=1.0):
    """All coordinates, one iteration; the singular vector by NumPy."""

    def rule(rows, weights):
        n, center = len(rows), mean(rows, [1.0] * len(rows))
        far = np.array([[x - m for x, m in zip(g, center, strict=True)] for g in rows])
        if np.abs(far).max() <= 1e-12 * np.abs(np.array(rows)).max():
            return mean(rows, weights)
        direction = np.linalg.svd(far)[2][0]
        scores = [dot(x, direction) ** 2 for x in far.tolist()]
        dropped = math.ceil(filter_fraction * majority(num_byzantine, n) - 1e-6)
        return kept(rows, weights, shares_of_smallest(scores, max(n - dropped, 1)))

    return rule
