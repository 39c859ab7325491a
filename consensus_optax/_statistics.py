"""Statistics of rows that merge in any order: what folds are made of.

A statistic looks at one row at a time and coordinate by coordinate, so it can be taken
while rows stream by: over a batch, over microbatches, over devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from consensus_optax._typing import Array


class Statistic(NamedTuple):
    """One statistic per coordinate.

    Attributes:
      observe: (row, weight) to an array of the row's shape. ``weight`` has shape ().
        A second copy of a row with weight 0 must not change the merged statistic:
        either the result is proportional to the weight or ``merge(x, x) == x``.
      merge: associative and commutative function of two such arrays.
      absorbing: value that no further row can change, if there is one: a fold may
        stop once every coordinate has it.
    """

    observe: Callable[[Array, Array], Array]
    merge: Callable[[Array, Array], Array]
    absorbing: float | None = None


def minmod(x: Array, y: Array) -> Array:
    """The smaller in magnitude where both have one sign, else 0.

    Associative and commutative, which the pair (min, max) is not needed for.

    Args:
      x: array.
      y: array of the same shape.

    Returns:
      Array of that shape.

    Examples:
      >>> import jax.numpy as jnp
      >>> minmod(jnp.array([1., -1., 2.]), jnp.array([3., 2., -1.])).tolist()
      [1.0, 0.0, 0.0]
    """
    return jnp.clip(y, jnp.minimum(x, 0), jnp.maximum(x, 0))


WEIGHTED_SUM = Statistic(lambda g, w: w * g, jnp.add)
POSITIVE_WEIGHT = Statistic(lambda g, w: jnp.where(g > 0, w, 0), jnp.add)
NEGATIVE_WEIGHT = Statistic(lambda g, w: jnp.where(g < 0, w, 0), jnp.add)
POSITIVE_SUM = Statistic(lambda g, w: w * jnp.maximum(g, 0), jnp.add)
NEGATIVE_SUM = Statistic(lambda g, w: w * jnp.minimum(g, 0), jnp.add)
SMALLEST_POSITIVE = Statistic(lambda g, w: jnp.where(g > 0, g, jnp.inf), jnp.minimum)
LARGEST_NEGATIVE = Statistic(lambda g, w: jnp.where(g < 0, g, -jnp.inf), jnp.maximum)
LOG_MAGNITUDE = Statistic(lambda g, w: w * jnp.log(jnp.abs(g) + 1e-10), jnp.add)
MINMOD = Statistic(lambda g, w: g, minmod, absorbing=0.0)
