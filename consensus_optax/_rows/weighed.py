"""Rows times one array, on their way to be summed: gradients of scales of a weight.

Where a model multiplies a weight by a number, or its columns by a vector, that it
learns as well, their gradient is the weight's times the weight, summed. Factors need
not be multiplied out for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from consensus_optax._rows.outer_product import OuterProduct
from consensus_optax._rows.verbs import inner_products
from consensus_optax._rows.views import as_matrix
from consensus_optax._typing import Array


class Weighed(NamedTuple):
    """Rows times one array of their shape.

    Attributes:
      leaf: the rows.
      array: that all of them are multiplied by, entry by entry.
    """

    leaf: OuterProduct
    array: Array

    def materialize(self) -> Array:
        """The product, (B, ...)."""
        return self.leaf.materialize() * self.array[None]


def summed(rows: Weighed, over: Sequence[int]) -> Array | None:
    """Their sum over all axes but that of rows, or over all of one of the two sides.

    None where that is neither.
    """
    leaf = rows.leaf
    axes = [axis for axis in range(leaf.ndim) if axis not in over]
    if axes == [0]:
        return inner_products(leaf, rows.array)
    if leaf.num_layers is not None:
        return None
    if axes[:1] != [0] or any(name != "transpose" for name, _ in leaf.steps):
        return None
    places = [_place(leaf, axis - 1) for axis in axes[1:]]
    middle, (_, m, _) = 0, leaf.sides
    while math.prod(leaf.row_shape[:middle]) < m:
        middle += 1
    if all(place >= middle for place in places):
        found = _of_right(leaf, as_matrix(leaf, rows.array))
        side = range(middle, len(leaf.row_shape))
    elif all(place < middle for place in places) and not leaf.is_look_up:
        found = _of_left(leaf, as_matrix(leaf, rows.array))
        side = range(middle)
    else:
        return None
    found = found.reshape(found.shape[0], *(leaf.row_shape[place] for place in side))
    found = found.sum([1 + i for i, place in enumerate(side) if place not in places])
    kept = sorted(places)
    order = [0, *(1 + kept.index(place) for place in places)]
    return found.transpose(order)


def _place(leaf: OuterProduct, axis: int) -> int:
    """Which axis of ``row_shape`` is this axis of the parameter."""
    for _, argument in reversed(leaf.steps):
        axis = argument[axis]
    return axis


def _of_right(leaf: OuterProduct, matrix: Array) -> Array:
    """Summed over M, (B, N)."""
    left, right = leaf.factors
    if leaf.is_look_up:
        options = {"mode": "fill", "fill_value": 0, "wrap_negative_indices": False}
        images = matrix.at[left].get(**options)
    else:
        images = jnp.matmul(left, matrix.astype(left.dtype), precision=leaf.precision)
    return (images * right.astype(images.dtype)).sum(1)


def _of_left(leaf: OuterProduct, matrix: Array) -> Array:
    """Summed over N, (B, M)."""
    left, right = leaf.factors
    turned = matrix.T.astype(right.dtype)
    images = jnp.matmul(right, turned, precision=leaf.precision)
    return (images * left.astype(images.dtype)).sum(1)
