"""Slices, pads and concatenations of a gradient, done to one of its two factors.

They undo what a model did to a weight before it was used: gates of a recurrent cell
strung together, one kernel split into queries, keys and values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from consensus_optax._rows.explicit import apart, joined, spec_of
from consensus_optax._rows.outer_product import OuterProduct
from consensus_optax._typing import Array

# Of an array and one of its axes, to that array with another length of the axis.
OfAxis = Callable[[Array, int], Array]


def cut(eqn: Any, leaf: OuterProduct, first: int) -> list[OuterProduct] | None:
    """The outputs of a slice, pad, split or reversal of kept rows; None if not kept.

    ``first``: the array's axis ``first`` is the first one of the parameter.
    """
    params, (out, *_) = eqn.params, eqn.outvars
    whole = eqn.invars[0].aval.shape
    axes = range(len(whole))
    match eqn.primitive.name:
        case "slice":
            strides = params["strides"] or [1] * len(whole)
            limits = zip(params["start_indices"], params["limit_indices"], strict=True)
            ways = [
                None if out.aval.shape[axis] == whole[axis] else (*limit, stride)
                for axis, limit, stride in zip(axes, limits, strides, strict=True)
            ]
            return _all([_along(leaf, ways, first, _slice)])
        case "pad":
            ways = [None if not any(way) else way for way in params["padding_config"]]
            return _all([_along(leaf, ways, first, _pad)])
        case "rev":
            ways = [() if axis in params["dimensions"] else None for axis in axes]
            return _all([_along(leaf, ways, first, jnp.flip)])
    sizes = params["sizes"]  # of a split
    part = lambda i: (sum(sizes[:i]), sum(sizes[: i + 1]), 1)
    way = lambda i: [part(i) if axis == params["axis"] else None for axis in axes]
    return _all([_along(leaf, way(i), first, _slice) for i in range(len(sizes))])


def strung(leaves: Sequence[OuterProduct], axis: int) -> list[OuterProduct] | None:
    """Rows strung together along an axis of the parameter, as terms of one sum.

    Each is padded with zeros to the length of all.
    """
    lengths = [leaf.shape[1 + axis] for leaf in leaves]

    def padded(i: int) -> OuterProduct | None:
        edges = (sum(lengths[:i]), sum(lengths[i + 1 :]), 0)
        return _on_axis(leaves[i], axis, lambda x, at: _pad(x, at, *edges))

    return _all([padded(i) for i in range(len(leaves))])


def along_axis(
    leaf: OuterProduct, numbers: Array, axis: int, first: int
) -> OuterProduct | None:
    """Rows times numbers that differ along one axis, and may from row to row.

    ``first``: as in :func:`cut`.
    """
    if any(entry is not None for entry in spec_of(numbers)):
        return None
    rows = numbers.shape[0] if first == 1 else 1

    def times(view: Array, at: int) -> Array:
        shape = [1] * view.ndim
        shape[0], shape[at] = rows, numbers.shape[axis]
        return view.astype(leaf.dtype) * numbers.reshape(shape)

    return _on_axis(leaf, axis - first, times)


def _all(leaves: list[OuterProduct | None]) -> list[OuterProduct] | None:
    """The leaves, or None if one is."""
    found = [leaf for leaf in leaves if leaf is not None]
    return found if len(found) == len(leaves) else None


def _slice(x: Array, axis: int, start: int, limit: int, stride: int) -> Array:
    return lax.slice_in_dim(x, start, limit, stride, axis)


def _pad(x: Array, axis: int, low: int, high: int, interior: int) -> Array:
    ways = [(0, 0, 0)] * x.ndim
    ways[axis] = (int(low), int(high), int(interior))
    return lax.pad(x, jnp.zeros((), x.dtype), ways)


def _along(
    leaf: OuterProduct, ways: Sequence[Any], first: int, function: Callable[..., Array]
) -> OuterProduct | None:
    """The rows with every axis changed for which ``ways`` says how."""
    found: OuterProduct | None = leaf
    for axis, way in enumerate(ways):
        if found is None or way is None:
            continue
        if axis < first:
            return None
        of_axis = lambda x, at, way=way: function(x, at, *way)
        found = _on_axis(found, axis - 1, of_axis)
    return found


def _on_axis(leaf: OuterProduct, axis: int, change: OfAxis) -> OuterProduct | None:
    """The rows with one axis of the parameter changed, if it is one of a factor's."""
    if [name for name, _ in leaf.steps] == ["reshape"]:
        shape = leaf.shape[1:]
        sides = lambda shape: [side for side in shape if side > 1]
        if sides(shape) == sides(leaf.row_shape):  # axes of size 1 are anywhere
            leaf = dataclasses.replace(leaf, row_shape=shape, steps=())
    shapes = [leaf.row_shape]
    for name, argument in leaf.steps:
        last = shapes[-1]
        moved = tuple(last[i] for i in argument) if name == "transpose" else argument
        shapes.append(moved)
    places = [axis]  # of the axis after every step, from the last one to the first
    for (name, argument), before, after in zip(
        reversed(leaf.steps), reversed(shapes[:-1]), reversed(shapes[1:]), strict=True
    ):
        if name == "transpose":
            places.append(argument[places[-1]])
            continue
        sides, new = (
            [i for i, side in enumerate(s) if side > 1] for s in (before, after)
        )
        alike = [before[i] for i in sides] == [after[i] for i in new]
        if not alike or places[-1] not in new:
            return None
        places.append(sides[new.index(places[-1])])
    *places, place = places
    changed = _on_factor(leaf, place, change)
    if changed is None:
        return None
    length = changed.row_shape[place]
    steps = []
    for (name, argument), at in zip(leaf.steps, reversed(places), strict=True):
        if name == "reshape":
            argument = (*argument[:at], length, *argument[at + 1 :])
        steps.append((name, argument))
    return dataclasses.replace(changed, steps=tuple(steps))


def _on_factor(leaf: OuterProduct, place: int, change: OfAxis) -> OuterProduct | None:
    """The same for an axis of ``row_shape``, of which the steps know nothing yet."""
    _, m, _ = leaf.sides
    start = 0
    while math.prod(leaf.row_shape[:start]) < (leaf.num_layers or 1):
        start += 1
    if place < start:
        return None
    middle = start
    while math.prod(leaf.row_shape[start:middle]) < m:
        middle += 1
    is_left = place < middle
    if is_left and leaf.is_look_up:
        return None
    first, last = (start, middle) if is_left else (middle, len(leaf.row_shape))
    factor = leaf.left if is_left else leaf.right
    view = apart(factor, factor.ndim - 1, leaf.row_shape[first:last])
    view = change(view, factor.ndim - 1 + place - first)
    side = view.shape[factor.ndim - 1 + place - first]
    row_shape = (*leaf.row_shape[:place], side, *leaf.row_shape[place + 1 :])
    whole = joined(view, factor.ndim - 1, view.ndim)
    if is_left:
        return dataclasses.replace(leaf, left=whole, row_shape=row_shape)
    return dataclasses.replace(leaf, right=whole, row_shape=row_shape)
