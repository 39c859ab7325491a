"""Real numbers as integers modulo 2**32, of which sums are exact."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._typing import Array


class FixedPoint(NamedTuple):
    r"""Multiples of a power of two, between minus and plus a bound.

    .. math:: q(x) = \mathrm{trunc}(x s) \bmod 2^{32}, \qquad
        s = 2^{\lfloor \log_2 ((2^{31} - 1) / \beta) \rfloor}

    Guarantees: for numbers whose magnitudes sum to at most :math:`\beta` the sum of the
    encoded, decoded, is off by less than 1 / s for each number, :math:`2^{-30} \beta`
    at the most, and by the rounding of one number of the decoded dtype. Rounded is
    towards zero: nothing that is encoded is larger than what it was.
    Edge cases: beyond the bound sums are other numbers, without notice; single numbers
    beyond it are the bound's, and what is no number is 0.

    Attributes:
      bound: beta.

    Examples:
      >>> code = FixedPoint(4.0)
      >>> x = code.encode(jnp.array([1.5, -3.25]))
      >>> code.decode(x), code.decode(x.sum(dtype=jnp.uint32))
      (Array([ 1.5 , -3.25], dtype=float32), Array(-1.75, dtype=float32))
    """

    bound: float

    @property
    def scale(self) -> float:
        """The power of two s."""
        return 2.0 ** math.floor(math.log2((2**31 - 1) / self.bound))

    def encode(self, x: Array) -> Array:
        """Uint32 of the same shape."""
        # float32 has no 2**31 - 1, and the one below 2**31 is 2**31 - 128
        scaled = jnp.clip(x * self.scale, -(2.0**31) + 128, 2.0**31 - 128)
        scaled = jnp.where(jnp.isnan(scaled), 0, jnp.trunc(scaled))
        return lax.bitcast_convert_type(scaled.astype(jnp.int32), jnp.uint32)

    def decode(self, total: Array, dtype: Any = jnp.float32) -> Array:
        """Numbers of the given dtype."""
        return lax.bitcast_convert_type(total, jnp.int32).astype(dtype) / self.scale


def fixed_point(bound: float) -> FixedPoint:
    """The code for sums within a bound.

    Args:
      bound: the largest magnitude of a sum, in (0, inf).

    Returns:
      A pair of functions, ``encode`` and ``decode``.

    Raises:
      ValueError: ``bound`` is out of range.

    Examples:
      >>> fixed_point(1.0).scale == 2.0**30
      True
    """
    _check.static_number("bound", bound, 1e-30, 1e30)
    return FixedPoint(float(bound))
