"""Means with errors, paired differences, many comparisons, and what would be seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95
POWER = 0.8


class Estimate(NamedTuple):
    """A mean over units."""

    mean: float
    stderr: float  # nan of one unit


class Difference(NamedTuple):
    """A mean of paired differences."""

    mean: float
    low: float
    high: float  # the 95 % interval of Student's t
    p: float  # two-sided, of no difference
    least: float  # the least true difference seen at 5 % with probability 0.8


def by_unit(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Means of replicates of the same unit, (U, ...): seeds of a task are no tasks."""
    return np.array([values[units == unit].mean(0) for unit in np.unique(units)])


def estimate(values: np.ndarray) -> Estimate:
    """Of independent values (U,)."""
    stderr = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return Estimate(float(values.mean()), float(stderr))


def difference(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """Of values (U,) that are paired: the same units, data and starting weights."""
    gaps = ours - theirs
    mean, stderr = estimate(gaps)
    if not stderr > 0:  # of one unit, or of arms that are the same
        p = 1.0 if mean == 0 and len(gaps) > 1 else np.nan
        return Difference(mean, mean, mean, p, 0.0 if p == 1 else np.nan)
    freedom = len(gaps) - 1
    half = stderr * stats.t.ppf((1 + LEVEL) / 2, freedom)
    p = 2 * stats.t.sf(abs(mean) / stderr, freedom)
    least = stderr * _noncentrality(freedom)
    return Difference(mean, mean - half, mean + half, float(p), least)


def _noncentrality(freedom: int) -> float:
    """How many standard errors a true difference must be to be seen."""
    bound = stats.t.ppf((1 + LEVEL) / 2, freedom)
    power = lambda x: stats.nct.sf(bound, freedom, x)  # of the right sign
    return float(optimize.brentq(lambda x: power(x) - POWER, 0, 2 * bound + 2))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p values: the chance of any false one of them is that at most."""
    order = sorted(p, key=lambda name: p[name])
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[name]))
        adjusted[name] = largest
    return adjusted
