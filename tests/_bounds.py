"""How far rounding may take a sum: from the number of terms and the dtype alone.

Another processor adds in another order, with fused multiplications or without, so what
one machine gave is no bound.
"""

import ml_dtypes
import numpy as np

# How many standard deviations: exceeded with probability 2 exp(-32), 3e-14.
_DEVIATIONS = 8


def unit(dtype=np.float32):
    """The unit roundoff: the largest relative error of one rounded number."""
    return float(ml_dtypes.finfo(dtype).eps) / 2


def of_sum(terms, dtype=np.float32):
    """The error of a sum of so many products, over the sum of their magnitudes.

    In whatever order it is added: n u at most (Higham 2002, section 3.1), and, since
    roundings are as good as independent, 8 sqrt(n) u all but surely (Higham and Mary
    2019, theorem 2.4). One u more is the rounding of the products.
    """
    return (min(terms, _DEVIATIONS * np.sqrt(terms)) + 1) * unit(dtype)


def assert_sums(got, wanted, magnitudes, terms, dtype=np.float32, roundings=0):
    """Asserts that sums are right to rounding, entry by entry.

    ``magnitudes``: the sums of the terms' magnitudes. ``roundings``: how many more
    there are of the result.
    """
    bound = (of_sum(terms, dtype) + roundings * unit(dtype)) * np.asarray(magnitudes)
    off = np.abs(np.asarray(got, np.float64) - wanted)
    assert (off <= bound).all(), f"off by {(off / bound).max():.2g} of what may be"
