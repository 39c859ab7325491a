"""Which coordinates of the leaves are at hand: all, or those that this device holds.

A rule that works coordinate by coordinate, or from inner products, need not know. What
sums over coordinates asks here, so that it is right wherever it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from consensus_optax._typing import Array


def _sums(leaves: Sequence[Array]) -> list[Array]:
    return [jnp.sum(leaf) for leaf in leaves]


def _sizes(leaves: Sequence[Array]) -> list[int]:
    return [math.prod(leaf.shape) for leaf in leaves]


class Coordinates(NamedTuple):
    """Sums over all coordinates, from those at hand; as it stands these are all.

    Attributes:
      total: tree of arrays, each a sum over coordinates at hand, to the sums over all.
      sums: the update's leaves, or what has their shapes, to the sum of each, ().
      sizes: the same to the number of coordinates of each.
      draw: (index, leaf, make) to what ``make(shape)`` says of the coordinates at hand
        of leaf ``index``; ``shape`` is that of the whole parameter.
      alike: whether all leaves are held by the same devices.
      counted: one array for every leaf, if not: 0 where another device counts the same.
      own: an update's leaves, whole, to their coordinates at hand.
      whole: the inverse, the same on every device; (pieces, exact), where not exact
        numbers may travel in a narrower dtype.
    """

    total: Callable[[Any], Any] = lambda tree: tree
    sums: Callable[[Sequence[Array]], list[Array]] = _sums
    sizes: Callable[[Sequence[Array]], list[int]] = _sizes
    draw: Callable[[int, Array, Callable[..., Array]], Array] = (
        lambda index, leaf, make: make(leaf.shape)
    )
    alike: bool = True
    counted: Callable[[list[Array]], list[Array]] = lambda leaves: leaves
    own: Callable[[list[Array]], list[Array]] = lambda leaves: leaves
    whole: Callable[[list[Array], bool], list[Array]] = lambda pieces, exact: pieces


ALL = Coordinates()
