"""Outer products seen otherwise: in other shapes, as matrices, one row at a time."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from consensus_optax._rows.outer_product import OuterProduct, contract, row_shapes
from consensus_optax._typing import Array


def reshaped(leaf: OuterProduct, shape: tuple[int, ...]) -> OuterProduct:
    """The same rows in another shape, given without the example axis."""
    step = ("reshape", tuple(shape))
    return dataclasses.replace(leaf, steps=(*leaf.steps, step))


def transposed(leaf: OuterProduct, axes: tuple[int, ...]) -> OuterProduct:
    """The same rows with axes permuted, by exchanging the sides if that is all."""
    if axes == tuple(range(len(axes))):
        return leaf
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
    return dataclasses.replace(leaf, steps=(*leaf.steps, ("transpose", axes)))


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


def as_matrix(leaf: OuterProduct, direction: Array) -> Array:
    """What `restored` brings to an array of parameter shape."""
    _, m, n = leaf.sides
    layers = () if leaf.num_layers is None else (leaf.num_layers,)
    before = zip(leaf.steps, row_shapes(leaf), strict=False)  # and one after all
    for (name, argument), shape in reversed(list(before)):
        if name == "transpose":
            inverse = sorted(range(len(argument)), key=argument.__getitem__)
            direction = direction.transpose(inverse)
        else:
            direction = direction.reshape(shape)
    return direction.reshape((*layers, m, n))


def row_matrix(leaf: OuterProduct, index: Any) -> Array:
    """Row ``index`` as an (M, N) or (L, M, N) matrix, in at least float32."""
    left = leaf.left[0] if leaf.is_shared else leaf.left[index]
    return contract(leaf, left, leaf.right[index])
