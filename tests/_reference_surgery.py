"""Gradient surgery as published, on plain numbers, as _reference_multi_objective.py.

No JAX but for the numbers that are drawn.
"""

import math

import jax
import numpy as np

from tests._reference_agreement import dot, norm
from tests._reference_multi_objective import relative


def others_of(key, step, i, count):
    """The other rows, in the random order in which row i meets them."""
    row_key = jax.random.fold_in(jax.random.fold_in(key, step), i)
    fold = lambda j: jax.random.fold_in(row_key, j)
    draw = lambda j: float(jax.random.uniform(fold(j), dtype="float32"))
    return sorted([j for j in range(count) if j != i], key=draw)


def pcgrad(key, step=0):
    def rule(rows, weights):
        total = [0.0] * len(rows[0])
        for i, w in enumerate(relative(weights)):
            h = list(rows[i])
            for j in others_of(key, step, i, len(rows)):
                against = dot(h, rows[j])
                if against < 0:
                    part = against / dot(rows[j], rows[j])
                    h = [x - part * y for x, y in zip(h, rows[j], strict=True)]
            total = [t + w * x for t, x in zip(total, h, strict=True)]
        return total

    return rule


def grad_vac(key, decay=0.99, step=0, target=None):
    """Changes ``target`` (N, N) in place."""

    def rule(rows, weights):
        usual = np.zeros((len(rows), len(rows))) if target is None else target
        total = [0.0] * len(rows[0])
        for i, w in enumerate(relative(weights)):
            h = list(rows[i])
            for j in others_of(key, step, i, len(rows)):
                length = norm(h)
                if length <= 1e-6 * norm(rows[i]) or not norm(rows[j]):
                    continue  # no direction
                cosine = dot(h, rows[j]) / length / norm(rows[j])
                goal = min(max(usual[i, j], -0.9999), 0.9999)
                if cosine < goal:
                    sine = math.sqrt(1 - goal**2)
                    turn = goal * math.sqrt(max(1 - cosine**2, 0)) - cosine * sine
                    part = length * turn / (norm(rows[j]) * sine)
                    h = [x + part * y for x, y in zip(h, rows[j], strict=True)]
                usual[i, j] = decay * usual[i, j] + (1 - decay) * cosine
            total = [t + w * x for t, x in zip(total, h, strict=True)]
        return total

    return rule
