"""The robust rules as published, in double loops over plain numbers.

As in tests/_reference.py: rows (N lists of P floats) and weights (N positive floats) to
a list of P floats. What ours adds to the papers: rows that tie for the last place share
it, of scores equal to 1e-5 the first is least, f is lowered where too few rows are
there, and weights average those that are kept.
"""

import itertools
import math

import numpy as np

from tests._reference import dot, halfway_to_mean, mean, norm


def squared_distance(x, y):
    total = 0.0
    for a, b in zip(x, y, strict=True):
        total += (a - b) ** 2
    return total


def shares_of_smallest(scores, count):
    """1 for the ``count`` smallest, a share of the last places for those that tie."""
    last = sorted(scores)[count - 1]
    inside = [s < last * (1 - 1e-5) for s in scores]
    tied = [s <= last * (1 + 1e-5) and s >= last * (1 - 1e-5) for s in scores]
    share = (count - sum(inside)) / sum(tied)
    return [
        1.0 if i else share if t else 0.0 for i, t in zip(inside, tied, strict=True)
    ]


def kept(rows, weights, shares):
    """The mean of rows by share and weight."""
    return mean(rows, [s * w for s, w in zip(shares, weights, strict=True)])


def majority(num_byzantine, count):
    """f, lowered to what n > 2f allows."""
    return min(num_byzantine, (count - 1) // 2)


def column(rows, p):
    return [g[p] for g in rows]


def middle(numbers):
    numbers, n = sorted(numbers), len(numbers)
    return (numbers[(n - 1) // 2] + numbers[n // 2]) / 2


def median(rows, weights):
    """Where half of the weight lies on either side."""
    update = []
    for p in range(len(rows[0])):
        entries = sorted(zip(column(rows, p), weights, strict=True))
        half, below, lower, upper = sum(weights) / 2, 0.0, None, None
        for x, w in entries:
            below += w
            if lower is None and below >= half:
                lower = x
            if upper is None and below > half:
                upper = x
        update.append((lower + upper) / 2)
    return update


def trimmed_mean(trim):
    def rule(rows, weights):
        f = majority(trim, len(rows))
        update = []
        for p in range(len(rows[0])):
            entries = sorted(column(rows, p))
            total = mass = 0.0
            for x in sorted(set(entries)):  # each value: how many of it are kept
                ranks = [k for k, y in enumerate(entries) if y == x]
                within = [k for k in ranks if f <= k < len(entries) - f]
                tied = [w for g, w in zip(rows, weights, strict=True) if g[p] == x]
                share = len(within) / len(ranks)
                total += share * sum(tied) * x
                mass += share * sum(tied)
            update.append(total / mass)
        return update

    return rule


def winsorized_mean(quantile):
    def rule(rows, weights):
        n = len(rows)
        k = math.floor(quantile * n + 1e-6)
        update = []
        for p in range(len(rows[0])):
            entries = sorted(column(rows, p))
            low, high = entries[k], entries[n - 1 - k]
            total = 0.0
            for g, w in zip(rows, weights, strict=True):
                total += w * min(max(g[p], low), high)
            update.append(total / sum(weights))
        return update

    return rule


def mean_around_median(num_byzantine):
    def rule(rows, weights):
        return near_median(rows, weights, majority(num_byzantine, len(rows)))

    return rule


def near_median(rows, weights, dropped):
    """All but ``dropped`` entries, nearest the median first. Exact ties share."""
    update = []
    for p in range(len(rows[0])):
        entries = column(rows, p)
        center = middle(entries)
        far = [abs(x - center) for x in entries]
        last = sorted(far)[len(rows) - dropped - 1]
        slack = 1e-9 * max(map(abs, entries))  # float64 rounds the middle of two
        inside = [d < last - slack for d in far]
        tied = [abs(d - last) <= slack for d in far]
        share = (len(rows) - dropped - sum(inside)) / sum(tied)
        total = mass = 0.0
        for x, w, i, t in zip(entries, weights, inside, tied, strict=True):
            part = w * (1.0 if i else share if t else 0.0)
            total += part * x
            mass += part
        update.append(total / mass)
    return update


def krum_scores(rows, count):
    """Sum of squared distances of each row to its ``count`` nearest others."""
    scores = []
    for i, g in enumerate(rows):
        others = [squared_distance(g, h) for j, h in enumerate(rows) if j != i]
        scores.append(sum(sorted(others)[: max(count, 0)]))
    return scores


def krum(num_byzantine, num_selected=1):
    def rule(rows, weights):
        n = len(rows)
        f = min(num_byzantine, max((n - 3) // 2, 0))
        scores = krum_scores(rows, n - f - 2)
        return kept(rows, weights, shares_of_smallest(scores, min(n - f, num_selected)))

    return rule


def bulyan(num_byzantine):
    def rule(rows, weights):
        n = len(rows)
        f = min(num_byzantine, max((n - 3) // 4, 0))
        left, selected = list(range(n)), []
        for _ in range(n - 2 * f):
            scores = krum_scores([rows[i] for i in left], max(len(left) - f - 2, 1))
            best = left[[x <= min(scores) * (1 + 1e-5) for x in scores].index(True)]
            left.remove(best)
            selected.append(best)
        near = min(num_byzantine, max((len(selected) - 3) // 2, 0))
        return near_median(
            [rows[i] for i in selected], [weights[i] for i in selected], 2 * near
        )

    return rule


def bulyan_of_more(num_byzantine):
    def rule(rows, weights):
        halfway = halfway_to_mean(lambda moved, _: moved)(rows, weights)
        return bulyan(num_byzantine)(rows + halfway, weights + weights)

    return rule


def minimum_diameter(num_byzantine):
    def rule(rows, weights):
        n = len(rows)
        f = majority(num_byzantine, n)
        subsets = list(itertools.combinations(range(n), n - f))
        widths = [
            max(squared_distance(rows[i], rows[j]) for i in subset for j in subset)
            for subset in subsets
        ]
        means = [
            mean([rows[i] for i in subset], [weights[i] for i in subset])
            for subset, width in zip(subsets, widths, strict=True)
            if width <= min(widths) * (1 + 1e-5)
        ]
        return mean(means, [1.0] * len(means))

    return rule


def comparative_elimination(num_byzantine):
    def rule(rows, weights):
        norms = [dot(g, g) for g in rows]
        count = len(rows) - majority(num_byzantine, len(rows))
        return kept(rows, weights, shares_of_smallest(norms, count))

    return rule


def geometric_median(rows, weights, nu=1e-4, iterations=64):
    distances = [[math.sqrt(squared_distance(g, h)) for h in rows] for g in rows]
    reaches = [_majority(line, weights) for line in distances]
    radius = min(reaches)
    tie = radius * (1 + 5e-5)
    pairs = zip(distances, reaches, strict=True)
    inner = [line for line, reach in pairs if reach <= tie]
    near = [float(sum(line[i] <= tie for line in inner)) for i in range(len(rows))]
    z = kept(rows, weights, near)
    if radius == 0:
        return z
    smoothing = nu * radius
    for _ in range(iterations):
        far = [math.sqrt(squared_distance(z, g)) for g in rows]
        pulls = [w / max(smoothing, d) for w, d in zip(weights, far, strict=True)]
        z = mean(rows, pulls)
    return z


def _majority(line, weights):
    """The least distance within which more than half of the weight lies."""
    order = np.argsort(line)
    mass = np.cumsum(np.array(weights)[order])
    return line[order[np.argmax(mass > mass[-1] / 2 * (1 + 1e-6))]]


def centered_clipping(max_distance, iterations=1):
    """From a previous update of zero."""

    def rule(rows, weights):
        v = [0.0] * len(rows[0])
        for _ in range(iterations):
            v = clipped_step(v, rows, weights, max_distance)
        return v

    return rule


def clipped_step(v, rows, weights, max_distance):
    pulls = []
    for g in rows:
        pull = [x - y for x, y in zip(g, v, strict=True)]
        length = norm(pull)
        factor = max_distance / length if length > max_distance else 1.0
        pulls.append([factor * x for x in pull])
    return [x + y for x, y in zip(v, mean(pulls, weights), strict=True)]


def trusted_row(index=0):
    def rule(rows, weights):
        trusted, length = rows[index], norm(rows[index])
        total, update = 0.0, [0.0] * len(trusted)
        for i, (g, w) in enumerate(zip(rows, weights, strict=True)):
            if i == index or norm(g) == 0 or length == 0:
                continue
            trust = w * max(0.0, dot(g, trusted) / norm(g) / length)
            total += trust
            for p in range(len(update)):
                update[p] += trust * g[p] * length / norm(g)
        return [x / total for x in update] if total > 0 else [0.0] * len(trusted)

    return rule


def nearest_neighbor_mixing(num_byzantine, rule):
    def mixed(rows, weights):
        count = len(rows) - majority(num_byzantine, len(rows))
        new = []
        for g in rows:
            far = [squared_distance(g, h) for h in rows]
            new.append(kept(rows, weights, shares_of_smallest(far, count)))
        return rule(new, weights)

    return mixed


def adaptive_clipping(num_byzantine, rule):
    def mixed(rows, weights):
        n = len(rows)
        f = majority(num_byzantine, n)
        clipped = math.floor(2 * f * (n - f) / n + 1e-9)
        limit = sorted(map(norm, rows))[n - clipped - 1]
        new = [[x * min(1.0, limit / (norm(g) or 1.0)) for x in g] for g in rows]
        return rule(new, weights)

    return mixed
