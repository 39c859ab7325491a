"""The methods as published, in double loops over plain numbers: slow, and readable.

Every function takes rows (a list of N lists of P floats) and weights (a list of N
positive floats; the published codes know only ones) and gives a list of P floats.
No JAX, and no broadcasting that could share a mistake with what is tested.
"""

import math

import numpy as np

EPS = 1e-8  # in the code of AdaCons


def whole_model(rule):
    """The rule on all leaves as one vector: leaves (N, size) each to leaves (size,)."""

    def on_leaves(leaves, weights):
        rows = [[float(x) for leaf in leaves for x in leaf[i]] for i in _range(weights)]
        ends = np.cumsum([leaf.shape[1] for leaf in leaves])[:-1]
        return np.split(np.array(rule(rows, list(weights)), float), ends)

    return on_leaves


def by_leaf(rule):
    """The rule on every leaf by itself."""

    def on_leaves(leaves, weights):
        return [
            np.array(rule(leaf.tolist(), list(weights)), float).reshape(leaf.shape[1])
            for leaf in leaves
        ]

    return on_leaves


def mean(rows, weights):
    update = []
    for p in _range(rows[0]):
        total = mass = 0.0
        for g, w in zip(rows, weights, strict=True):
            total += w * g[p]
            mass += w
        update.append(total / mass)
    return update


def normalized_mean(rows, weights):
    directions = []
    for g in rows:
        length = norm(g)
        directions.append([x / length if length > 0 else 0.0 for x in g])
    return mean(directions, weights)


def clipped_sum(max_norm, divisor, stability=None):
    """Every row times its weight, made no longer than max_norm; over the divisor."""

    def rule(rows, weights):
        update = [0.0] * len(rows[0])
        for g, w in zip(rows, weights, strict=True):
            length = w * norm(g)
            if stability is None:
                factor = min(1, max_norm / length) if length > 0 else 1
            else:
                factor = max_norm / (length + stability)
            for p in _range(g):
                update[p] += w * factor * g[p] / divisor
        return update

    return rule


def clipped_by_leaf(max_norm, divisor):
    """The same of every leaf with its share of the norm; leaves as for by_leaf."""

    def on_leaves(leaves, weights):
        rule = clipped_sum(max_norm / math.sqrt(len(leaves)), divisor)
        return by_leaf(rule)(leaves, weights)

    return on_leaves


def consensus_training(rows, weights):
    """All positive: the smallest. All negative: the largest. Otherwise nothing."""
    del weights
    update = []
    for p in _range(rows[0]):
        smallest, largest = math.inf, -math.inf
        for g in rows:
            smallest, largest = min(smallest, g[p]), max(largest, g[p])
        update.append(smallest if smallest > 0 else largest if largest < 0 else 0.0)
    return update


def and_mask(quorum, magnitude, rescale=False):
    """Masks by the share of votes, with each magnitude; for one leaf."""

    def rule(rows, weights):
        update, survivors = [], 0
        for p in _range(rows[0]):
            column = [(g[p], w) for g, w in zip(rows, weights, strict=True)]
            value = 0.0
            for sign in (1, -1):
                agreeing = [(x, w) for x, w in column if sign * x > 0]
                votes = sum(w for _, w in agreeing) / sum(weights)
                if votes >= quorum - 1e-9:
                    value = _magnitude(magnitude, sign, column, agreeing)
            survivors += value != 0
            update.append(value)
        if rescale:
            update = [x / (survivors / len(update) + 1e-10) for x in update]
        return update

    return rule


def _magnitude(magnitude, sign, column, agreeing):
    average = lambda pairs: sum(w * x for x, w in pairs) / sum(w for _, w in pairs)
    if magnitude == "min":
        return sign * min(abs(x) for x, _ in agreeing)
    if magnitude == "agreeing_mean":
        return average(agreeing)
    if magnitude == "mean":
        return average(column)
    size = math.exp(average([(math.log(abs(x) + 1e-10), w) for x, w in column]))
    total = sum(w * x for x, w in column)
    return math.copysign(size, total) if total else 0.0


def published_and_mask(rows, tau):
    """The mask as its authors compute it: from the mean of the signs."""
    update = []
    for p in _range(rows[0]):
        signs = sum((g[p] > 0) - (g[p] < 0) for g in rows) / len(rows)
        average = sum(g[p] for g in rows) / len(rows)
        update.append(average if abs(signs) >= tau - 1e-9 else 0.0)
    return update


def gaf(threshold, average="halving", temperature=None):
    """Gradient agreement filtering in the order of its authors' loop.

    Where a direction is missing (a zero row or sum) theirs accepts; here it rejects.
    """

    def rule(rows, weights):
        running, mass, accepted = list(rows[0]), weights[0], 0.0
        for g, w in zip(rows[1:], weights[1:], strict=True):
            scale = norm(running) * norm(g)
            if scale == 0:
                continue
            distance = 1 - dot(running, g) / scale
            if temperature is None:
                gate = float(distance <= threshold)
            else:
                gate = 1 / (1 + math.exp(-(threshold - distance) / temperature))
            accepted += gate
            if average == "halving":
                move = gate / 2
            else:
                mass += gate * w
                move = gate * w / mass
            for p in _range(running):
                running[p] = (1 - move) * running[p] + move * g[p]
        return running if accepted > 0 else [0.0] * len(running)

    return rule


class AdaCons:
    """Adaptive consensus, step after step, with the sorted coefficients it keeps.

    ``back``: how the averaged coefficients return to their rows: by the "inverse" of
    the sorting permutation, or by the permutation itself, as "published".
    """

    def __init__(self, momentum=0.0, rescale=False, back="inverse"):
        self.momentum, self.rescale, self.back = momentum, rescale, back
        self.average = None

    def __call__(self, rows, weights):
        count, mass = len(rows), sum(weights)
        total = [
            sum(w * g[p] for g, w in _pairs(rows, weights)) for p in _range(rows[0])
        ]
        norms = [norm(g) for g in rows]
        a = [dot(total, rows[i]) / (mass * (norms[i] + EPS)) for i in range(count)]
        a = self.averaged(a) if self.momentum else a
        votes = [w * x for w, x in zip(weights, a, strict=True)]
        if sum(votes) <= 1e-3 * sum(abs(v) for v in votes):  # ours: no safe sum
            shares = [w / mass for w in weights]
        else:
            shares = [v / sum(votes) for v in votes]
        scale = dot(weights, norms) / mass if self.rescale else 1.0
        update = [0.0] * len(total)
        for i in range(count):
            for p in _range(total):
                update[p] += scale * shares[i] * rows[i][p] / (norms[i] + EPS)
        return update

    def averaged(self, a):
        order = sorted(range(len(a)), key=lambda i: a[i])
        ascending = [a[i] for i in order]
        if self.average is None:
            self.average = ascending
        else:
            b = self.momentum
            pairs = zip(self.average, ascending, strict=True)
            self.average = [b * m + (1 - b) * s for m, s in pairs]
        returned = [0.0] * len(a)
        for rank, i in enumerate(order):
            if self.back == "inverse":
                returned[i] = self.average[rank]
            else:
                returned[rank] = self.average[i]
        return returned


def adacons(**options):
    """The first step of AdaCons, anew at every call."""
    return lambda rows, weights: AdaCons(**options)(rows, weights)


def among(selects, rule):
    """``selects(rows, weights)`` gives a list of bools; ``rule`` gets those rows."""

    def chosen(rows, weights):
        kept = [i for i, keep in enumerate(selects(rows, weights)) if keep]
        if not kept:
            return [0.0] * len(rows[0])
        return rule([rows[i] for i in kept], [weights[i] for i in kept])

    return chosen


def gaf_accepts(threshold):
    """Which rows the filter ends up with: the first and the accepted, if there are."""

    def selects(rows, weights):
        del weights
        kept, running = [0], list(rows[0])
        for i in range(1, len(rows)):
            scale = norm(running) * norm(rows[i])
            if scale and 1 - dot(running, rows[i]) / scale <= threshold:
                kept.append(i)
                running = [(x + y) / 2 for x, y in zip(running, rows[i], strict=True)]
        return [i in kept and len(kept) > 1 for i in _range(rows)]

    return selects


def largest(rows, weights):
    del weights
    return [max(g[p] for g in rows) for p in _range(rows[0])]


def typical(rows, weights):
    center = mean(rows, weights)
    far = [norm([x - m for x, m in zip(g, center, strict=True)]) ** 2 for g in rows]
    total = sum(far) or 1.0
    votes = [w / (1 + x / total) for w, x in zip(weights, far, strict=True)]
    return mean(rows, votes)


def halfway_to_mean(rule):
    """The rule on rows that have moved half of the way to their mean."""

    def mixed(rows, weights):
        center = mean(rows, weights)
        moved = [[(x + m) / 2 for x, m in zip(g, center, strict=True)] for g in rows]
        return rule(moved, weights)

    return mixed


def dot(x, y):
    total = 0.0
    for a, b in zip(x, y, strict=True):
        total += a * b
    return total


def norm(x):
    return math.sqrt(dot(x, x))


def _pairs(rows, weights):
    return zip(rows, weights, strict=True)


def _range(items):
    return range(len(items))
