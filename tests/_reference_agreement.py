"""Agreement rules in double loops over plain numbers, in the order of the papers.

As in tests/_reference.py: rows (a list of N lists of P floats) and weights (N positive
floats) to a list of P floats. No JAX but for the numbers that GradDrop draws.
"""

import math

import jax
import numpy as np


def mean_of(rows, weights, chosen):
    """Weighted mean of the chosen rows; zeros if there is none."""
    mass = sum(weights[i] for i in chosen)
    return [
        sum(weights[i] * rows[i][p] for i in chosen) / mass if chosen else 0.0
        for p in range(len(rows[0]))
    ]


def everyone(rows, weights):
    """The mean, as of a filter that has nothing yet to compare with."""
    return mean_of(rows, weights, range(len(rows)))


def dot(x, y):
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def norm(x):
    return math.sqrt(dot(x, x))


def distance(x, y):
    return norm([a - b for a, b in zip(x, y, strict=True)])


def sign(x):
    return int(x > 0) - int(x < 0)


def cosine(x, y):
    return dot(x, y) / (norm(x) * norm(y))


def variance(column, weights):
    """Of a row, unbiased: N - 1 below if the weights are equal."""
    shares = [w / sum(weights) for w in weights]
    middle = sum(s * x for s, x in zip(shares, column, strict=True))
    spread = sum(s * (x - middle) ** 2 for s, x in zip(shares, column, strict=True))
    squares = sum(s * s for s in shares)
    return (spread / (1 - squares) if len(column) > 1 else 0.0), squares


def sign_vote(magnitude):
    def rule(rows, weights):
        update = []
        for p in range(len(rows[0])):
            votes = size = 0.0
            for g, w in zip(rows, weights, strict=True):
                votes += w * sign(g[p])
                size += w * abs(g[p])
            total = sum(weights)
            update.append(
                {
                    "unit": sign(votes),
                    "vote": votes / total,
                    "mean": sign(votes) * size / total,
                }[magnitude]
            )
        return update

    return rule


def sand_mask(k, gamma, tau, rescale):
    """For one leaf."""

    def rule(rows, weights):
        masks, means, total = [], [], sum(weights)
        for p in range(len(rows[0])):
            column = [g[p] for g in rows]
            votes = sum(w * sign(x) for x, w in zip(column, weights, strict=True))
            spread, _ = variance(column, weights)
            excess = abs(votes) / total - tau
            if excess <= 1e-9:
                mask = 0.0
            elif spread <= 1e-12 * max(x * x for x in column):
                mask = 1.0
            else:
                mask = math.tanh(k * excess / (gamma * spread))
            masks.append(mask)
            means.append(
                sum(w * x for x, w in zip(column, weights, strict=True)) / total
            )
        share = sum(masks) / len(masks) if masks else 1.0
        divisor = share if rescale and share > 0 else 1.0
        return [m * g / divisor for m, g in zip(masks, means, strict=True)]

    return rule


def example_moments(variance, eps=1e-8):
    """Adam's first step, whose bias corrections leave the moments of the rows."""

    def rule(rows, weights):
        update = []
        for p in range(len(rows[0])):
            mean = square = 0.0
            for g, w in zip(rows, weights, strict=True):
                mean += w * g[p] / sum(weights)
                square += w * g[p] * g[p] / sum(weights)
            moment = mean * mean + variance * (square - mean * mean)
            update.append(mean / (moment**0.5 + eps))
        return update

    return rule


def signal_to_noise(tau, gate):
    def rule(rows, weights):
        update = []
        for p in range(len(rows[0])):
            column = [g[p] for g in rows]
            spread, squares = variance(column, weights)
            if spread <= 1e-12 * max(x * x for x in column):
                spread = 0.0
            (middle,) = mean_of([[x] for x in column], weights, range(len(rows)))
            signal, noise = middle * middle, tau * squares * spread
            if gate == "hard":
                update.append(middle if signal >= noise * (1 - 1e-9) else 0.0)
            else:
                update.append(middle * signal / (signal + noise) if signal else 0.0)
        return update

    return rule


def graddrop(leak, key, step=0):
    """On leaves: each draws with its own key."""

    def on_leaves(leaves, weights):
        mean_weight = sum(weights) / len(weights)
        step_key, updates = jax.random.fold_in(key, step), []
        for index, leaf in enumerate(leaves):
            leaf_key = jax.random.fold_in(step_key, index)
            draws = np.asarray(jax.random.uniform(leaf_key, leaf.shape[1:], "float32"))
            update = np.zeros(leaf.shape[1])
            for p in range(leaf.shape[1]):
                terms = [w * x for w, x in zip(weights, leaf[:, p], strict=True)]
                size = sum(abs(x) for x in terms)
                chance = 0.5 * (1 + sum(terms) / size) if size else 0.5
                for x in terms:
                    kept = x > 0 if chance > draws[p] else x < 0
                    update[p] += leak * x + (1 - leak) * kept * x
            updates.append(update / mean_weight)
        return updates

    return on_leaves


def neighbor_filter(tau):
    def rule(rows, weights):
        moving = [i for i, g in enumerate(rows) if norm(g) > 0]
        near = {
            i: [j for j in moving if j != i and 1 - cosine(rows[i], rows[j]) <= tau]
            for i in moving
        }
        best, score = None, (0, -math.inf)
        for i in moving:
            votes = sum(weights[j] for j in [i, *near[i]])
            closeness = sum(
                weights[j] * cosine(rows[i], rows[j]) for j in [i, *near[i]]
            )
            better = votes > score[0] * (1 + 1e-9)
            tied = votes >= score[0] * (1 - 1e-9) and closeness > score[1] + 1e-9
            if near[i] and (better or tied):
                best, score = i, (votes, closeness)
        return mean_of(rows, weights, [] if best is None else [best, *near[best]])

    return rule


def sign_filter(tau):
    def rule(rows, weights):
        signs = [[sign(x) for x in g] for g in rows]
        voters = [i for i in range(len(rows)) if any(signs[i])]
        accepted = []
        for i in voters:
            others = [j for j in voters if j != i]
            if others:
                agreement = sum(
                    weights[j] * (1 + cosine(signs[i], signs[j])) / 2 for j in others
                )
                agreement /= sum(weights[j] for j in others)
                if agreement >= tau - 1e-9:
                    accepted.append(i)
        return mean_of(rows, weights, accepted)

    return rule


def l2_filter(limit, reference, relative):
    def rule(rows, weights):
        everyone = list(range(len(rows)))
        counted = everyone
        if reference == "mean":
            middle = mean_of(rows, weights, everyone)
        else:
            central = medoid(rows, weights)
            middle = rows[central]
            counted = [i for i in everyone if i != central]
        far = [distance(g, middle) for g in rows]
        scale = lower_median([(far[i], weights[i]) for i in counted])
        bound = limit * scale * (1 + 1e-9) if relative else limit
        return mean_of(rows, weights, [i for i in everyone if far[i] <= bound])

    return rule


def medoid(rows, weights):
    """The row with the least median distance to the others; of ties the first."""
    medians = []
    for i, g in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        medians.append(
            lower_median([(distance(g, rows[j]), weights[j]) for j in others])
        )
    return next(i for i, m in enumerate(medians) if m <= min(medians) * (1 + 1e-5))


def lower_median(pairs):
    passed = 0.0
    for value, weight in sorted(pairs):
        passed += weight
        if passed >= sum(w for _, w in pairs) / 2 * (1 - 1e-9):
            return value
    return 0.0


def cluster_mean(num_clusters, min_size, iterations):
    def rule(rows, weights):
        everyone = list(range(len(rows)))
        chosen = [medoid(rows, weights)]
        while len(chosen) < num_clusters:
            nearest = [min(distance(g, rows[c]) for c in chosen) for g in rows]
            chosen.append(nearest.index(max(nearest)))
        clusters = [[c] for c in chosen]
        for _ in range(iterations):
            means = [mean_of(rows, weights, c) if c else None for c in clusters]
            clusters = [[] for _ in clusters]
            for i in everyone:
                far = [math.inf if m is None else distance(rows[i], m) for m in means]
                clusters[far.index(min(far))].append(i)
        kept = [c for c in clusters if len(c) >= min_size]
        means = [mean_of(rows, weights, c) for c in kept]
        return (
            mean_of(means, [1] * len(kept), range(len(kept)))
            if kept
            else [0.0 for _ in rows[0]]
        )

    return rule


def adasum(rows, weights):
    del weights
    nodes = [list(g) for g in rows]
    while len(nodes) > 1:
        joined = []
        for a, b in zip(nodes[::2], nodes[1::2], strict=False):
            of_a = 1 - dot(a, b) / (2 * dot(a, a)) if norm(a) > 0 else 1
            of_b = 1 - dot(a, b) / (2 * dot(b, b)) if norm(b) > 0 else 1
            both = [of_a * x + of_b * y for x, y in zip(a, b, strict=True)]
            cancelled = norm(both) <= 1e-9 * (norm(a) + norm(b))
            joined.append([0.0] * len(a) if cancelled else both)
        nodes = joined + ([nodes[-1]] if len(nodes) % 2 else [])
    return nodes[0]


def keep_smallest_losses(num_kept, values):
    def rule(rows, weights):
        order = sorted(range(len(rows)), key=lambda i: values[i])
        return mean_of(rows, weights, order[:num_kept])

    return rule
