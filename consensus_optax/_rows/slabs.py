"""Slabs of a parameter, and which lines or columns of factors multiply to them."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp

from consensus_optax._rows.outer_product import OuterProduct, Step, row_shapes
from consensus_optax._typing import Array

# An array seen as (outer, length, inner), of which equal parts of the middle are slabs.
Run = tuple[int, int, int]


class Slab(NamedTuple):
    """What one of N slabs along an axis of the parameter is of rows that are products.

    Attributes:
      side: of which factor it takes a part, ``"left"`` or ``"right"``.
      run: how that factor's last axis is cut, or the lines of a table.
      row_shape: of the products of a slab; so are ``steps``.
      steps: see :class:`OuterProduct`.
    """

    side: str
    run: Run
    row_shape: tuple[int, ...]
    steps: tuple[Step, ...]

    def of(self, leaf: OuterProduct, left: Array, right: Array) -> OuterProduct:
        """The slab's rows, of factors of which one is a part."""
        return dataclasses.replace(
            leaf, left=left, right=right, row_shape=self.row_shape, steps=self.steps
        )

    def lines(self, indices: Array, number: int | Array, count: int) -> Array:
        """Lines of a table as those of slab ``number`` of N; -1 where of another one.

        All that a slab takes of indices, which are as many as before.
        """
        outer, length, inner = self.run
        size = length // count
        place = indices // inner % length - number * size
        there = (indices >= 0) & (indices < outer * length * inner)
        there &= (place >= 0) & (place < size)
        own = (indices // (length * inner) * size + place) * inner + indices % inner
        return jnp.where(there, own, -1)


def run_of(shape: tuple[int, ...], axis: int) -> Run:
    """An axis of an array and all before and after it."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def slab_of(leaf: OuterProduct, axis: int, count: int) -> Slab | None:
    """Slabs along an axis of the parameter, which N divides.

    None if no factor is cut by them: along an axis of layers, or where what is together
    in the parameter is apart in the product.
    """
    shapes = row_shapes(leaf)
    run = run_of(shapes[-1], axis)
    steps: list[Step] = []
    stages = list(zip(leaf.steps, shapes[:-1], shapes[1:], strict=True))
    for (name, argument), before, after in reversed(stages):
        found = _within(after, run, count)
        if found is None:
            return None
        place, (outer, length, inner) = found
        if name == "transpose":
            ahead, _, behind = run_of(before, argument[place])
            run = ahead * outer, length, inner * behind
        else:
            argument = _slab_shape(after, place, count)
        steps.append((name, argument))
    _, m, n = leaf.sides
    in_row = _within(leaf.row_shape, run, count)
    in_matrix = _within((leaf.num_layers or 1, m, n), run, count)
    if in_row is None or in_matrix is None:
        return None
    place, run = in_matrix
    if place == 0:
        return None
    row_shape = _slab_shape(leaf.row_shape, in_row[0], count)
    side = "left" if place == 1 else "right"
    return Slab(side, run, row_shape, tuple(reversed(steps)))


def _within(shape: tuple[int, ...], run: Run, count: int) -> tuple[int, Run] | None:
    """The axis of another shape of the same entries that slabs cut, and how."""
    outer, length, _ = run
    ahead = 1
    for place, side in enumerate(shape):
        if outer < ahead * side:
            first, uneven = divmod(outer, ahead)
            own, more = divmod(side, first)
            if uneven or more:
                return None
            if own < length and (length % own or own % count):
                return None
            if own >= length and own % length:
                return None
            length = min(own, length)
            return place, (first, length, own // length)
        ahead *= side
    return None


def _slab_shape(shape: tuple[int, ...], place: int, count: int) -> tuple[int, ...]:
    """The shape of a slab."""
    return (*shape[:place], shape[place] // count, *shape[place + 1 :])
