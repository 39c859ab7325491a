"""Outer products of many layers: made of one, and read one layer at a time.

A scan over layers leaves the factors of all of them stacked. Reading them in a loop
keeps what is multiplied out as small as for layers written one after the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._rows.explicit import joined
from consensus_optax._rows.outer_product import (
    Factored,
    OuterProduct,
    is_outer_product,
)
from consensus_optax._rows.sums import each_part, with_held
from consensus_optax._rows.varying import varying_like
from consensus_optax._rows.views import transposed
from consensus_optax._typing import Array


class LayersFirst(NamedTuple):
    """Rows with an axis of layers ahead of the example axis, as scans stack them."""

    leaf: Factored

    def materialize(self) -> Array:
        """The array, (L, B, ...)."""
        return self.leaf.materialize().swapaxes(0, 1)

    def transposed(self, axes: tuple[int, ...]) -> Factored | None:
        """The rows if the example axis is brought to the front, else None."""
        exchanged = [{0: 1, 1: 0}.get(axis, axis) for axis in axes]
        if exchanged[0] != 0:
            return None
        return transposed(self.leaf, tuple(axis - 1 for axis in exchanged[1:]))


def placed(leaf: Any, spec: Sequence[Any]) -> Any:
    """Rows that are multiplied out as an array of this spec on explicit mesh axes."""
    if isinstance(leaf, LayersFirst):
        return LayersFirst(placed(leaf.leaf, (spec[1], spec[0], *spec[2:])))
    if not is_outer_product(leaf):
        return leaf
    own = tuple(spec[1:]) if any(spec[1:]) else ()
    return each_part(lambda part: dataclasses.replace(part, spec=own), leaf)


def joined_layers(stacked: OuterProduct) -> OuterProduct:
    """Rows of L layers, from a product whose factors lead with L.

    Its layers may have layers of their own, which are then counted together.
    """
    length = stacked.right.shape[0]

    def join(factor: Array) -> Array:  # (L, B, ..., T, M)
        return joined(jnp.moveaxis(factor, 0, 1), 1, factor.ndim - 2)

    def step(name: str, argument: tuple[int, ...]) -> Any:
        if name == "transpose":
            return name, (0, *(axis + 1 for axis in argument))
        return name, (length, *argument)

    return dataclasses.replace(
        stacked,
        left=join(stacked.left),
        right=join(stacked.right),
        row_shape=(length, *stacked.row_shape),
        steps=tuple(step(*each) for each in stacked.steps),
    )


def joined_terms(stacked: OuterProduct) -> OuterProduct:
    """The sum over an axis S that leads both factors: S T terms instead of T."""

    def join(factor: Array, place: int) -> Array:  # (S, B, ..., T, N), T at ``place``
        return joined(jnp.moveaxis(factor, 0, place - 1), place - 1, place + 1)

    place = stacked.right.ndim - 2
    left, right = join(stacked.left, place), join(stacked.right, place)
    return dataclasses.replace(stacked, left=left, right=right)


def layer(leaf: Factored, index: Any) -> Factored:
    """The matrices (M, N) of one layer, rows of their own."""
    if leaf.num_layers is None:
        return leaf
    take = lambda factor: lax.dynamic_index_in_dim(factor, index, 1, keepdims=False)
    return _one(leaf, list(map(take, leaf.held)))


def each_layer(function: Callable[..., Any], leaf: Factored) -> Any:
    """A function of every layer's matrices, results stacked in front."""
    return lax.map(lambda held: function(_one(leaf, held)), _by_layer(leaf))


def sum_of_layers(function: Callable[..., Any], *leaves: Any) -> Any:
    """A function of every layer of leaves, summed: of products, or (L, ...) arrays."""

    def cut(parts: Any) -> Any:
        pairs = zip(leaves, parts, strict=True)
        return [_one(x, y) if is_outer_product(x) else y for x, y in pairs]

    parts = [_by_layer(x) if is_outer_product(x) else x for x in leaves]
    first = jax.eval_shape(lambda: function(*cut(jax.tree.map(lambda x: x[0], parts))))
    start = varying_like(jnp.zeros(first.shape, first.dtype), *leaves)
    add = lambda total, part: (total + function(*cut(part)), None)
    return lax.scan(add, start, parts)[0]


def _one(leaf: Factored, held: Sequence[Array]) -> Factored:
    """One layer from its factors."""
    _, m, n = leaf.sides
    matrix = lambda part: dataclasses.replace(part, row_shape=(m, n), steps=())
    return each_part(matrix, with_held(leaf, held))


def _by_layer(leaf: Factored) -> list[Array]:
    """All factors with the layers in front, (L, B, T, M) and (L, B, T, N)."""
    return [jnp.moveaxis(factor, 1, 0) for factor in leaf.held]
