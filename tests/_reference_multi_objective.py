"""Multi-objective rules as published, on plain numbers; quadratic programs by trial.

As in tests/_reference.py: rows (a list of N lists of P floats) and weights (N positive
floats) to a list of P floats. A program over weights is solved for every set of
weights that may be positive, and the answer is the one that meets all conditions.
"""

import itertools
import math

import numpy as np

from tests._reference_agreement import dot, norm


def gramian(rows):
    return np.array([[dot(g, h) for h in rows] for g in rows])


def combined(coefficients, rows):
    return [
        math.fsum(c * g[p] for c, g in zip(coefficients, rows, strict=True))
        for p in range(len(rows[0]))
    ]


def relative(weights):
    """Weights over their mean: the papers know only ones."""
    return [w * len(weights) / math.fsum(weights) for w in weights]


def mean_weights(weights):
    return [w / len(weights) for w in relative(weights)]


def subsets(count):
    for size in range(1, count + 1):
        yield from map(list, itertools.combinations(range(count), size))


def solved(matrix, side):
    """The solution, or None if the matrix is as good as singular."""
    scale = np.sqrt(np.abs(matrix).max(1))
    if not scale.all():
        return None
    even = matrix / scale[:, None] / scale
    if np.linalg.cond(even) > 1e11:
        return None
    return np.linalg.solve(even, side / scale) / scale


def shortest(rows):
    """Weights of the shortest convex combination, and whether it is zero."""
    G = gramian(rows)
    lengths = np.sqrt(np.diag(G))
    if not lengths.all():
        return np.array([float(length == 0) for length in lengths]), True
    best, error = None, math.inf
    for chosen in subsets(len(rows)):
        inner = G[np.ix_(chosen, chosen)]
        u = lengths[chosen]
        # Minimise x'Gx over u'x = 1 in units of the lengths.
        y = solved(
            inner / u[:, None] / u + np.outer(1 / u, 1 / u) * u.min() ** 2, 1 / u
        )
        if y is None or (y < 0).any():
            continue
        x = np.zeros(len(rows))
        x[chosen] = y / u / (y / u).sum()
        square = x @ G @ x
        reach = lengths * (x @ lengths)
        worst = ((square - G @ x) / reach).max()
        if worst < error:
            best, error = x, worst
    return best, best @ G @ best <= 1e-14 * (best @ lengths) ** 2


def mgda(rows, weights):
    del weights
    best, cancel = shortest(rows)
    return [0.0] * len(rows[0]) if cancel else combined(best, rows)


def projected(H, u):
    """The v >= u with the least v'Hv."""
    slope = H @ u
    if (slope >= 0).all():
        return u
    best, error = u, math.inf
    for chosen in subsets(len(u)):
        z = np.zeros(len(u))
        z[chosen] = -np.linalg.solve(H[np.ix_(chosen, chosen)], slope[chosen])
        left = H @ (u + z)
        left[chosen] = 0
        scale = np.sqrt(np.diag(H))
        worst = max((-z * scale).max(), (-left / scale).max())
        if worst < error:
            best, error = u + z, worst
    return best


def regularized(rows, epsilon):
    G = gramian(rows)
    return G / (np.trace(G) or 1.0) + epsilon * np.eye(len(rows))


def projections(rows, epsilon, lower):
    """The sum of the projections, or zero where more than half of them is missing."""
    H, lower = regularized(rows, epsilon), np.array(lower)
    each = np.array([projected(H, u) for u in lower])
    image = each @ gramian(rows)
    if (image * lower).sum() > 2 * (image * each).sum():
        return [0.0] * len(rows[0])
    return combined(each.sum(0), rows)


def dual_projection(epsilon=1e-4, preference=None):
    lower = lambda weights: [preferred(preference, weights)]
    return lambda rows, weights: projections(rows, epsilon, lower(weights))


def upgrad(epsilon=1e-4, preference=None):
    lower = lambda weights: np.diag(preferred(preference, weights))
    return lambda rows, weights: projections(rows, epsilon, lower(weights))


def preferred(preference, weights):
    if preference is None:
        return mean_weights(weights)
    return [p * w for p, w in zip(preference, relative(weights), strict=True)]


def cagrad(c=0.5, preference=None, clip=False):
    def rule(rows, weights):
        shares = np.array(preferred(preference, weights))
        shares = shares / shares.sum()
        center = combined(shares, rows)
        k = c * norm(center)
        moving = [g for g in rows if any(g)]
        limits = [s for s, g in zip(shares, rows, strict=True) if any(g)]
        if k == 0 or not moving:
            return center
        G, b = gramian(moving), np.array([dot(center, g) for g in moving])
        best, value = None, 0.0 if shortest(moving)[1] else math.inf
        for chosen in subsets(len(moving)):
            x = stationary(G[np.ix_(chosen, chosen)], b[chosen], k)
            if x is None:
                continue
            u = combined(x, [moving[i] for i in chosen])
            length = norm(u)
            if dot(center, u) + k * length < value:
                best, value = u, dot(center, u) + k * length
                if clip:
                    full = np.zeros(len(moving))
                    full[chosen] = x
                    best = combined(np.minimum(shared(full, moving), limits), moving)
        if best is None:
            return center if clip else [0.0] * len(center)
        length = norm(best)
        return [m + k / length * x for m, x in zip(center, best, strict=True)]

    return rule


def shared(weights, rows):
    """Equal rows have equal parts of what they have together."""
    equal = np.array([[float(g == h) for h in rows] for g in rows])
    return equal @ weights / equal.sum(1)


def stationary(G, b, k):
    """Positive x with sum 1 and b + k Gx / sqrt(x'Gx) the same for all, or None.

    x is t / k times y G^-1 1 - G^-1 b, with t = sqrt(x'Gx): a quadratic equation in y.
    """
    a, e = solved(G, np.ones(len(b))), solved(G, b)
    if a is None or e is None:
        return None
    middle, inside = e.sum() / a.sum(), (k * k - b @ e) / a.sum()
    root = middle**2 + inside
    if root < 0:
        return None
    x = (middle + math.sqrt(root)) * a - e
    return None if x.sum() <= 0 or (x < 0).any() else x / x.sum()


def singular(matrix):
    """Left vectors and singular values that are not rounding."""
    U, s, _ = np.linalg.svd(np.array(matrix))
    kept = [k for k, x in enumerate(s) if x > 1e-13 * max(s[0], 1e-300)]
    return U[:, kept], s[kept]


def imtl_g(rows, weights):
    del weights
    U, s = singular(rows)
    lengths = np.array([norm(g) for g in rows])
    v = U @ ((U.T @ lengths) / s**2)
    if not len(s) or abs(v.sum()) <= 1e-12 * lengths.max() / s.min() ** 2:
        return [0.0] * len(rows[0])
    return combined(v / v.sum(), rows)


def aligned_mtl(scale="min", preference=None):
    def rule(rows, weights):
        U, s = singular(rows)
        p = np.array(preferred(preference, weights))
        if not len(s):
            return [0.0] * len(rows[0])
        squares = sorted(s**2)
        sigma = {
            "min": squares[0],
            "median": squares[(len(squares) - 1) // 2],
            "mean": math.fsum(squares) / len(squares),
        }[scale]
        coefficients = math.sqrt(sigma) * U @ ((U.T @ p) / s)
        if np.abs(coefficients).max() <= 1e-14:
            return [0.0] * len(rows[0])
        return combined(coefficients, rows)

    return rule


def conflict_free(preference=None):
    def rule(rows, weights):
        lengths = [norm(g) for g in rows]
        units = [[x / (norm(g) or 1.0) for x in g] for g in rows]
        p = preference or [1.0] * len(rows)
        p = [x if n else 0.0 for x, n in zip(p, lengths, strict=True)]
        best = np.linalg.pinv(np.array(units), rcond=1e-12) @ np.array(p)
        length = norm(best)
        if length <= 1e-12:
            return [0.0] * len(best)
        d = [x / length for x in best]
        total = dot(relative(weights), [dot(g, d) for g in rows])
        return [total * x for x in d]

    return rule


def gains(rows, counts, alpha):
    """Weights with (G v)_i = (c_i / v_i)^(1 / alpha), or None if the rows cancel.

    Newton's method on the convex function whose slope is zero there, halving steps.
    """
    if shortest([[x / norm(g) for x in g] for g in rows])[1]:
        return None
    G = gramian(rows)
    d = np.sqrt(np.diag(G))
    C, beta = G / d[:, None] / d, 1 / alpha
    c = np.array(counts) ** beta * d ** (beta - 1)
    unit = math.exp(np.log(c).mean())
    c = c / unit

    def value(v):
        barrier = np.log if beta == 1 else lambda v: v ** (1 - beta) / (1 - beta)
        return v @ C @ v / 2 - (c * barrier(v)).sum() if (v > 0).all() else math.inf

    v = c ** (1 / (1 + beta))
    for _ in range(100):
        slope = C @ v - c * v**-beta
        move = np.linalg.solve(C + np.diag(beta * c * v ** (-beta - 1)), -slope)
        step = 1.0
        enough = value(v) + 1e-13 * abs(value(v))  # no less than rounding
        while step > 1e-9 and value(v + step * move) > enough:
            step /= 2
        v = v + step * move
    return v * unit ** (1 / (1 + beta)) / d


def fairgrad(alpha):
    def rule(rows, weights):
        kept = [i for i, g in enumerate(rows) if any(g)]
        moving, counts = [rows[i] for i in kept], relative(weights)
        v = gains(moving, [counts[i] for i in kept], alpha) if moving else None
        return [0.0] * len(rows[0]) if v is None else combined(v, moving)

    return rule


def nash_mtl(max_norm):
    def rule(rows, weights):
        update = fairgrad(1.0)(rows, weights)
        length = norm(update)
        if max_norm is not None and length > max_norm:
            update = [x / length * max_norm for x in update]
        return update

    return rule
