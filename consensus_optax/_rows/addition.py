"""Adding factored rows to factored rows, and to one array that all rows share."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from consensus_optax._rows.explicit import automatic, concatenated, spec_of
from consensus_optax._rows.outer_product import Factored, OuterProduct
from consensus_optax._rows.sums import SumOfProducts, parts_of
from consensus_optax._rows.varying import varying_like
from consensus_optax._rows.views import as_matrix, with_dense_left
from consensus_optax._typing import Array


def added(x: Factored, y: Factored) -> Factored | None:
    """The sum of two leaves of rows; None where it is to be multiplied out.

    Terms of one kind are terms of one product, others parts of a sum.
    """
    parts = list(parts_of(x))
    for part in parts_of(y):
        for i, own in enumerate(parts):
            joint = _joined(own, part)
            if joint is not None:
                parts[i] = joint
                break
        else:
            parts.append(part)
    if not all(_laid_out_alike(parts[0], part) for part in parts[1:]):
        return None
    return SumOfProducts(tuple(parts)) if len(parts) > 1 else parts[0]


def one_product(leaf: Factored) -> OuterProduct | None:
    """The same rows as one product, with indices as one-hot factors, or None."""
    if isinstance(leaf, OuterProduct):
        return leaf
    parts = [with_dense_left(part) for part in leaf.parts]
    together = lambda x, y: None if x is None else _joined(x, y)
    return functools.reduce(together, parts[1:], parts[0])


def with_array(leaf: Factored, array: Array) -> SumOfProducts | None:
    """Rows that have one array of parameter shape added to all of them.

    None where the array is cut along explicit mesh axes: it is laid out as a vector.
    """
    if any(entry is not None for entry in spec_of(array)):
        return None
    first = parts_of(leaf)[0]
    right = first.right
    sides = (*right.shape[:-2], 1, 1)  # (B, 1, 1) or (B, L, 1, 1)
    spec = PartitionSpec(spec_of(right)[0], *[None] * (len(sides) - 1))
    ones = automatic(lambda _: jnp.ones(sides, array.dtype), (right,), spec)
    left = as_matrix(leaf, array).reshape(1, *right.shape[1:-2], 1, -1)
    shared = dataclasses.replace(
        first, left=left, right=varying_like(ones, right), dtype=first.dtype
    )
    return SumOfProducts((*parts_of(leaf), shared))


def _joined(x: OuterProduct, y: OuterProduct) -> OuterProduct | None:
    """One product with the terms of both, if they are of one kind and layout."""
    layout = lambda p: (p.row_shape, p.steps, p.dtype, p.precision, p.right.ndim)
    if x.is_one_array or y.is_one_array or layout(x) != layout(y):
        return None
    few = x.shape[0] == 1  # of one row no part is worth a loop of its own
    if x.sides[1:] != y.sides[1:] or (x.is_look_up != y.is_look_up and not few):
        return None
    if x.is_look_up and y.is_look_up and not few:
        left = concatenated(x.left[..., None], y.left[..., None])[..., 0]
    else:
        x, y = with_dense_left(x), with_dense_left(y)
        both = x.is_shared and y.is_shared
        left = concatenated(*(z.left if both else z.factors[0] for z in (x, y)))
    right = concatenated(x.right, y.right)
    return dataclasses.replace(x, left=left, right=right)


def _laid_out_alike(x: OuterProduct, y: OuterProduct) -> bool:
    """Whether two products may be parts of a sum."""
    layout = lambda p: (p.row_shape, p.steps, p.dtype, p.right.shape[:-2])
    if layout(x) != layout(y):
        return False
    one_kind = x.is_look_up == y.is_look_up
    return y.is_one_array or (x.sides[1:] == y.sides[1:] and not one_kind)
