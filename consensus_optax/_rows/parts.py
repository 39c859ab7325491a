"""Inner products of two parts of a sum that are products of different kinds."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax

from consensus_optax._rows.outer_product import OuterProduct
from consensus_optax._typing import Array

_precisely = {"precision": lax.Precision.HIGHEST}
# Inner products of pairs of terms that are held at a time.
_ENTRIES = 2**24


def of_both(left: Array, right: Array) -> Array:
    """Left times right; of a factor of zeros 0, however the other's overflowed."""
    return jnp.where((left == 0) | (right == 0), 0, left * right)


def projected(leaf: OuterProduct, matrix: Array) -> Array:
    """Inner product of every row with one matrix as rows are, (M, N), to (B,)."""
    dtype = matrix.dtype
    if leaf.is_look_up:
        options = {"mode": "fill", "fill_value": 0, "wrap_negative_indices": False}
        images = matrix.at[leaf.left].get(**options)
    else:
        images = jnp.matmul(leaf.left.astype(dtype), matrix, **_precisely)  # (B, T, N)
    return (images * leaf.right.astype(dtype)).sum((1, 2))


def own_products(x: OuterProduct, y: OuterProduct, dtype: Any) -> Array:
    """Inner products of every row of one part with the same row of another, (B,)."""
    if x.is_one_array:
        x, y = y, x
    if y.is_one_array:
        return of_both(_with_one_array(x, y, dtype), y.right[:, 0, 0].astype(dtype))
    if _is_of_a_table(x, y):
        dense, table = (y, x) if x.is_look_up else (x, y)
        lines = jnp.swapaxes(dense.factors[0], 1, 2)  # (B, M, T)
        index = jnp.clip(table.left, 0, lines.shape[1] - 1)[..., None]
        seen = jnp.take_along_axis(lines, index, 1).astype(dtype)  # (B, S, T)
        valid = (table.left >= 0) & (table.left < lines.shape[1])
        right = _of_rights("bsn,btn->bst", table, dense, dtype)
        return jnp.where(valid[..., None], of_both(seen, right), 0).sum((1, 2))
    rows = (z.materialize().astype(dtype) for z in (x, y))
    flat = (z.reshape(z.shape[0], -1) for z in rows)
    return jnp.einsum("bp,bp->b", *flat, **_precisely)


def cross_products(x: OuterProduct, y: OuterProduct, dtype: Any) -> Array:
    """Inner products of all pairs of rows of two parts, (B, C)."""
    if y.is_one_array:
        numbers = y.right[:, 0, 0].astype(dtype)
        return of_both(_with_one_array(x, y, dtype)[:, None], numbers[None, :])
    if x.is_one_array:
        return cross_products(y, x, dtype).T
    if _is_of_a_table(x, y):
        if y.is_look_up:
            return _with_table(x, y, dtype)
        return _with_table(y, x, dtype).T
    rows = (z.materialize().astype(dtype) for z in (x, y))
    ours, theirs = (z.reshape(z.shape[0], -1) for z in rows)
    return jnp.matmul(ours, theirs.T, **_precisely)


def _is_of_a_table(x: OuterProduct, y: OuterProduct) -> bool:
    """Whether one has the lines of a table that the other one looks up."""
    return x.is_look_up != y.is_look_up and x.sides[1:] == y.sides[1:]


def _with_one_array(x: OuterProduct, array: OuterProduct, dtype: Any) -> Array:
    """Inner products of rows with the array that all rows of another part share."""
    _, m, n = x.sides
    return projected(x, array.left.reshape(m, n).astype(dtype))


def _with_table(x: OuterProduct, table: OuterProduct, dtype: Any) -> Array:
    """Those of dense rows with looked up ones: (B, C), a row of the latter at a time.

    Of ``e_k x f`` and ``a x d`` it is ``a_k`` times ``d . f``.
    """
    options = {"mode": "fill", "fill_value": 0, "wrap_negative_indices": False}
    left, right = x.factors[0].astype(dtype), x.right.astype(dtype)

    def of_row(row: tuple[Array, Array]) -> Array:
        index, cotangent = row
        seen = left.at[:, :, index].get(**options)  # (B, T, S)
        products = jnp.einsum("btn,sn->bts", right, cotangent, **_precisely)
        return of_both(seen, products).sum((1, 2))

    each = right.shape[0] * right.shape[1] * table.left.shape[1]
    size = max(1, min(table.left.shape[0], _ENTRIES // each))
    rows = (table.left, table.right.astype(dtype))
    return lax.map(of_row, rows, batch_size=size).T


def _of_rights(pairs: str, x: OuterProduct, y: OuterProduct, dtype: Any) -> Array:
    inner = functools.partial(jnp.einsum, pairs, **_precisely)
    return inner(x.right.astype(dtype), y.right.astype(dtype))
