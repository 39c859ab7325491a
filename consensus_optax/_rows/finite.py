"""Which rows are finite. Of finite factors the product may not be."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._rows.explicit import of_each_row
from consensus_optax._rows.outer_product import (
    Factored,
    OuterProduct,
    contract,
    is_outer_product,
)
from consensus_optax._rows.sums import each_part, parts_of, total_of, with_held
from consensus_optax._typing import Array


def finite_rows(leaves: Sequence[Array | Factored], dtype: Any) -> Array:
    """Which rows have no inf or nan in any leaf, (B,) bool.

    Of an array 0 * x is nan just for the non-finite x, so one product with a vector of
    zeros tells at memory bandwidth; XLA compiles ``isfinite(x).all(axis)`` six times
    slower on CPU. Under ``jax_debug_nans``, where a nan made on purpose stops the
    program, that is it. Of products see :func:`_finite_products`.
    """

    def of_leaves(leaves: Sequence[Array | Factored]) -> Array:
        products = [leaf for leaf in leaves if is_outer_product(leaf)]
        arrays = [leaf for leaf in leaves if not is_outer_product(leaf)]
        found = [_finite_array(leaf, dtype) for leaf in arrays]
        found += [_finite_products(products, dtype)] if products else []
        return functools.reduce(jnp.logical_and, found)

    return of_each_row(of_leaves, leaves)


def cleared(leaf: Any, there: Array) -> Any:
    """A leaf with zeros in the rows that are not there; others than rows pass."""
    if is_outer_product(leaf):
        return with_held(leaf, [_or(factor, there, 0) for factor in leaf.held])
    return _or(leaf, there, 0) if _moves(leaf) else leaf


def spoiled(leaf: Any, sound: Array) -> Any:
    """A leaf whose other rows are nan, so that a reducer excludes and counts them.

    Or inf, under ``jax_debug_nans``.
    """
    mark = jnp.inf if jax.debug_nans.value else jnp.nan
    if is_outer_product(leaf):
        of_part = lambda x: dataclasses.replace(x, right=_or(x.right, sound, mark))
        return each_part(of_part, leaf)
    return _or(leaf, sound, mark) if _moves(leaf) else leaf


def _or(rows: Array, chosen: Array, value: float) -> Array:
    """Rows where chosen, else a value."""
    column = chosen.reshape(-1, *[1] * (rows.ndim - 1))
    return jnp.where(column, rows, jnp.asarray(value, rows.dtype))


def _moves(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _finite_array(rows: Array, dtype: Any) -> Array:
    """The same of one array."""
    if jax.debug_nans.value:
        narrowed = jnp.where(jnp.isfinite(rows), rows, jnp.inf).astype(dtype)
        return jnp.isfinite(narrowed).reshape(rows.shape[0], -1).all(1)
    flat = rows.astype(dtype).reshape(rows.shape[0], -1)
    return jnp.isfinite(flat @ jnp.zeros(flat.shape[1], dtype))


def _finite_products(leaves: Sequence[Factored], dtype: Any) -> Array:
    """Which rows have finite factors and a finite product in every leaf, (B,) bool.

    By Cauchy and Schwarz no entry of a row exceeds the product of its factors' norms.
    Only if that bound is beyond a leaf's dtype anywhere are products looked at: a row
    of one leaf, or layer, at a time, so that no stack of them is ever planned for.
    """
    sound = functools.reduce(
        jnp.logical_and, (_is_bounded(leaf, dtype) for leaf in leaves)
    )
    # leaves are not handed over, which would give every row a left factor of its own
    look = lambda: sound | _are_finite(leaves)
    return lax.cond(jnp.all(sound), lambda: sound, look)


def _is_bounded(leaf: Factored, dtype: Any) -> Array:
    """Which rows cannot but be finite, (B,) bool."""
    if jax.debug_nans.value:  # 0 times inf would stop the program
        return jnp.zeros(leaf.shape[0], bool)

    def norms(factor: Array) -> Array:  # inf or nan where an entry is
        flat = factor.reshape(factor.shape[0], -1).astype(dtype)
        return jnp.sqrt(jnp.einsum("bk,bk->b", flat, flat))

    def of_part(part: OuterProduct) -> Array:
        # a term of a look-up is added to one line of the table
        left = part.sides[0] if part.is_look_up else norms(part.left)
        return left * norms(part.right)

    # half, since norms are rounded; less than a bound of nan is none
    return total_of(of_part, leaf) < 0.5 * jnp.asarray(_largest(leaf), dtype)


def _largest(leaf: Factored) -> Any:
    return jnp.finfo(leaf.dtype).max


def _are_finite(leaves: Sequence[Factored]) -> Array:
    """The same of factors and products as they are, (B,) bool."""

    def one(leaf: Factored, held: Sequence[Array]) -> Array:
        if held[1].ndim == 3:  # of layers
            each = lambda held: one(leaf, held)
            return lax.map(each, held).all()
        there = [jnp.isfinite(x) for x in held]
        factors = [jnp.where(*x, 0) for x in zip(there, held, strict=True)]
        pairs = zip(parts_of(leaf), factors[::2], factors[1::2], strict=True)
        products = [contract(*each).reshape(-1) for each in pairs]
        product = functools.reduce(jnp.add, products).astype(leaf.dtype)
        parts = [x.all() for x in (*there, jnp.isfinite(product))]
        return functools.reduce(jnp.logical_and, parts)

    def row(own: list[list[Array]]) -> Array:
        found = []
        for leaf, given in zip(leaves, own, strict=True):
            queue = iter(given)
            of_row = zip(leaf.held, _are_shared(leaf), strict=True)
            held = [x[0] if shared else next(queue) for x, shared in of_row]
            found.append(one(leaf, held))
        return functools.reduce(jnp.logical_and, found)

    def of_row(leaf: Factored) -> list[Array]:
        pairs = zip(leaf.held, _are_shared(leaf), strict=True)
        return [factor for factor, shared in pairs if not shared]

    return lax.map(row, list(map(of_row, leaves)))


def _are_shared(leaf: Factored) -> list[bool]:
    """Which of the factors that are held all rows share."""
    return [x for part in parts_of(leaf) for x in (part.is_shared, False)]
