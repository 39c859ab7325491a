"""How far rounding may take a sum: from its number of terms and the dtype alone."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

# How many standard deviations: exceeded with probability 2 exp(-32), 3e-14.
_DEVIATIONS = 8


def unit(dtype: Any) -> float:
    """The unit roundoff: the largest relative error of one rounded number."""
    return float(jnp.finfo(dtype).eps) / 2


def of_sum(terms: int, dtype: Any) -> float:
    """The error of a sum of so many products, over the sum of their magnitudes.

    In whatever order it is added: n u at most (Higham 2002, section 3.1), and, since
    roundings are as good as independent, 8 sqrt(n) u all but surely (Higham and Mary
    2019, theorem 2.4). One u more is the rounding of the products.
    """
    return (min(terms, _DEVIATIONS * math.sqrt(terms)) + 1) * unit(dtype)


def of_one_more(terms: int, dtype: Any) -> float:
    """By how much rounding may change what one term more changes in a sum.

    Over the largest magnitude of a term. However it is added, the k-th partial sum is
    at most k terms large: two sums of n are off by n (n + 1) u together, and all but
    surely by 8 standard deviations, each n^3 / 3 squares of u. Of the term itself, and
    of the weight it is multiplied by, 8 u are lost.
    """
    surely = terms * (terms + 1)
    likely = _DEVIATIONS * math.sqrt(2 * (terms + 1) ** 3 / 3)
    return (min(surely, likely) + 8) * unit(dtype)
