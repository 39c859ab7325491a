"""PCD as published, on plain numbers; its program by trial of all sets that bind."""

import math

import numpy as np

from tests._reference_multi_objective import combined, dot, norm, subsets


def pcd(tau=0.02, decay=0.999, index=0, averages=None):
    """``averages``: a pair of lists, of sums of squares and of their weights."""

    def rule(rows, weights):
        del weights
        count = len(rows)
        sums, masses = averages or ([0.0] * count, [0.0] * count)
        for i, g in enumerate(rows):
            sums[i] = decay * sums[i] + (1 - decay) * dot(g, g)
            masses[i] = decay * masses[i] + 1 - decay
        if not any(rows[index]):
            return [0.0] * len(rows[0])
        normal = [
            [x / math.sqrt(s / m) for x in g] if s > 0 else [0.0] * len(g)
            for g, s, m in zip(rows, sums, masses, strict=True)
        ]
        first = normal[index]
        others = [g for i, g in enumerate(normal) if i != index and any(g)]
        d = constrained(first, others, tau)
        length = norm(d)
        if length <= 1e-9 * norm(first):
            return [0.0] * len(d)
        return [x * norm(rows[index]) / length for x in d]

    return rule


def constrained(first, others, tau):
    """The vector nearest to the first that gives all others their part, or it."""
    for chosen in [[], *subsets(len(others))]:
        binding = [others[i] for i in chosen]
        d = list(first)
        if binding:
            inner = np.array([[dot(g, h) for h in binding] for g in binding])
            if np.linalg.cond(inner) > 1e9:
                continue
            missing = [tau * dot(g, g) - dot(g, first) for g in binding]
            multipliers = np.linalg.solve(inner, missing)
            if (multipliers < 0).any():
                continue
            d = [
                x + y
                for x, y in zip(first, combined(multipliers, binding), strict=True)
            ]
        if all(dot(g, d) >= tau * dot(g, g) - 1e-9 for g in others):
            return d
    return first
