"""Outer products seen otherwise: in other shapes, as matrices, one row at a time."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

import jax

from consensus_optax._rows.outer_product import (
    Factored,
    OuterProduct,
    contract,
    row_shapes,
)
from consensus_optax._rows.sums import SumOfProducts, each_part, parts_of, total_of
from consensus_optax._typing import Array

T = TypeVar("T")


def reshaped(leaf: T, shape: tuple[int, ...]) -> T:
    """The same rows in another shape, given without the example axis."""
    return _then(leaf, ("reshape", tuple(shape)))


def _then(leaf: T, step: tuple[str, tuple[int, ...]]) -> T:
    then = lambda part: dataclasses.replace(part, steps=(*part.steps, step))
    return each_part(then, leaf)


def transposed(leaf: Any, axes: tuple[int, ...]) -> Any:
    """The same rows with axes permuted, by exchanging the sides if that is all."""
    if axes == tuple(range(len(axes))):
        return leaf
    if isinstance(leaf, SumOfProducts):
        return _then(leaf, ("transpose", axes))
    _, m, _ = leaf.sides
    for split in range(len(leaf.row_shape) + 1):
        first, last = leaf.row_shape[:split], leaf.row_shape[split:]
        exchanges = axes == (*range(split, len(axes)), *range(split))
        if (
            exchanges
            and math.prod(first) == m
            and not (leaf.steps or leaf.is_look_up)
            and leaf.num_layers is None
            and not leaf.is_shared
        ):
            return dataclasses.replace(
                leaf, left=leaf.right, right=leaf.left, row_shape=(*last, *first)
            )
    return _then(leaf, ("transpose", axes))


def with_dense_left(leaf: OuterProduct) -> OuterProduct:
    """The same rows with indices written out as one-hot factors."""
    if not leaf.is_look_up:
        return leaf
    one_hot = jax.nn.one_hot(leaf.left, leaf.row_shape[0], dtype=leaf.right.dtype)
    return dataclasses.replace(leaf, left=one_hot)


def unshared(leaf: OuterProduct) -> OuterProduct:
    """The same rows with a left factor each."""
    return dataclasses.replace(leaf, left=leaf.factors[0]) if leaf.is_shared else leaf


def shared_left(leaf: OuterProduct) -> OuterProduct:
    """The same rows, with the left factor shared where the right one was.

    ``right`` is (1, T, N) then, and ``left`` (B, T, M).
    """
    start = 0
    while math.prod(leaf.row_shape[:start]) < (leaf.num_layers or 1):
        start += 1
    middle, last = start, len(leaf.row_shape)
    while math.prod(leaf.row_shape[start:middle]) < leaf.left.shape[-1]:
        middle += 1
    axes = [*range(start), *range(middle, last), *range(start, middle)]
    back = tuple(sorted(range(last), key=axes.__getitem__))
    row_shape = tuple(leaf.row_shape[axis] for axis in axes)
    steps = (("transpose", back), *leaf.steps)
    return dataclasses.replace(
        leaf, left=leaf.right, right=leaf.left, row_shape=row_shape, steps=steps
    )


def as_matrix(leaf: Factored, direction: Array) -> Array:
    """What `restored` brings to an array of parameter shape."""
    first = parts_of(leaf)[0]
    _, m, n = first.sides
    layers = () if first.num_layers is None else (first.num_layers,)
    before = zip(first.steps, row_shapes(first), strict=False)  # and one after all
    for (name, argument), shape in reversed(list(before)):
        if name == "transpose":
            inverse = sorted(range(len(argument)), key=argument.__getitem__)
            direction = direction.transpose(inverse)
        else:
            direction = direction.reshape(shape)
    return direction.reshape((*layers, m, n))


def row_matrix(leaf: Factored, index: Any) -> Array:
    """Row ``index`` as an (M, N) or (L, M, N) matrix, in at least float32."""

    def of_part(part: OuterProduct) -> Array:
        left = part.left[0] if part.is_shared else part.left[index]
        return in_lines(leaf, contract(part, left, part.right[index]), 0)

    return total_of(of_part, leaf)


def in_lines(leaf: Factored, matrices: Array, first: int) -> Array:
    """What parts multiply to, with the sides M and N of all of them.

    ``first``: how many axes lead those of one row.
    """
    if not isinstance(leaf, SumOfProducts):
        return matrices
    layers = () if leaf.num_layers is None else (leaf.num_layers,)
    return matrices.reshape((*matrices.shape[:first], *layers, *leaf.sides[1:]))
