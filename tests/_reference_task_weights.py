"""Rules of given, drawn and kept weights as published, on plain numbers.

As in tests/_reference.py; no JAX but for the numbers that are drawn. ``kept`` are the
weights of the tasks, changed in place, for several steps.
"""

import math

import jax
import jax.numpy as jnp

from tests._reference_multi_objective import combined, dot, relative


def constant(coefficients):
    def rule(rows, weights):
        pairs = zip(coefficients[: len(rows)], relative(weights), strict=True)
        return combined([c * w for c, w in pairs], rows)

    return rule


def random_weights(key, step=0):
    def rule(rows, weights):
        step_key = jax.random.fold_in(key, step)
        draw = lambda i: jax.random.normal(
            jax.random.fold_in(step_key, i), (), jnp.float32
        )
        odds = [w * math.exp(float(draw(i))) for i, w in enumerate(weights)]
        return combined([x / sum(odds) for x in odds], rows)

    return rule


def on_simplex(point):
    """By bisection on the number that is taken off, not by sorting."""
    point = [x - max(point) for x in point]
    low, high = -1.0, 0.0
    for _ in range(200):
        middle = (low + high) / 2
        total = sum(max(x - middle, 0.0) for x in point)
        low, high = (middle, high) if total > 1 else (low, middle)
    return [max(x - low, 0.0) for x in point]


def stepped(left, right, kept, gamma, rho):
    """One step of weights by the products of the rows of two batches."""
    slopes = [
        sum(dot(g, h) * x for h, x in zip(right, kept, strict=True)) + rho * own
        for g, own in zip(left, kept, strict=True)
    ]
    kept[:] = on_simplex([x - gamma * s for x, s in zip(kept, slopes, strict=True)])
    return kept


def moco(gamma=0.1, rho=0.0, kept=None):
    def rule(rows, weights):
        del weights
        own = [1 / len(rows)] * len(rows) if kept is None else kept
        return combined(stepped(rows, rows, own, gamma, rho), rows)

    return rule


def in_batches(rows, num_batches):
    size = len(rows) // num_batches
    return [rows[k * size : (k + 1) * size] for k in range(num_batches)]


def of_batches(weights, batches):
    """The third batch's rows combined, or the mean over two."""
    if len(batches) == 3:
        return combined(weights, batches[2])
    both = [combined(weights, batch) for batch in batches]
    return [(x + y) / 2 for x, y in zip(*both, strict=True)]


def modo(kept, num_batches=2, gamma=0.1, rho=0.1):
    def rule(rows, weights):
        del weights
        batches = in_batches(rows, num_batches)
        stepped(batches[0], batches[1], kept, gamma, rho)
        return of_batches(kept, batches)

    return rule


def sdmgrad(kept, num_batches=2, pull=0.3, preference=None, lr=5.0, momentum=0.5):
    def rule(rows, weights):
        del weights
        batches = in_batches(rows, num_batches)
        count = len(batches[0])
        p = preference or [1.0] * count
        p = [x / sum(p) for x in p]
        diagonal = [dot(g, h) for g, h in zip(batches[0], batches[1], strict=True)]
        scale = sum(math.sqrt(max(x, 0.0)) for x in diagonal) / count
        velocity = [0.0] * count
        for _ in range(20):
            pulled = [x + pull * y for x, y in zip(kept, p, strict=True)]
            slopes = [
                sum(dot(g, h) * x for h, x in zip(batches[1], pulled, strict=True))
                / scale**2
                for g in batches[0]
            ]
            velocity = [momentum * v + s for v, s in zip(velocity, slopes, strict=True)]
            kept[:] = on_simplex(
                [x - lr * v for x, v in zip(kept, velocity, strict=True)]
            )
        mixed = [(x + pull * y) / (1 + pull) for x, y in zip(kept, p, strict=True)]
        return of_batches(mixed, batches)

    return rule
