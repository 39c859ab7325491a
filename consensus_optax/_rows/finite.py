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
from consensus_optax._rows.magnitudes import entry_bounds
from consensus_optax._rows.outer_product import (
    Factored,
    contract,
    is_outer_product,
)
from consensus_optax._rows.sums import each_part, parts_of, with_held
from consensus_optax._typing import Array

# Dtypes end beyond this, but for those that sound models come near to the end of.
_WIDE = 1e30
# What sums of terms are taken to be larger by, for rounding.
_OF_SUMS = 1.0625


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


def guarded(leaves: Sequence[Any], there: Array) -> list[Any]:
    """The leaves themselves; to whoever takes derivatives, cleared.

    What is made of rows that are not there is thrown away, but of a product of such a
    row the derivative by the others is 0 times what it holds: nan, where that is nan.
    """
    held = [x.held if is_outer_product(x) else [x] for x in leaves]
    # what all rows share stays so, and indices have no derivative
    own = lambda x: x.shape[0] == there.shape[0] and _moves(x)
    kept = iter(_guarded([x for each in held for x in each if own(x)], there))
    new = [[next(kept) if own(x) else x for x in each] for each in held]
    return [
        with_held(leaf, each) if is_outer_product(leaf) else each[0]
        for leaf, each in zip(leaves, new, strict=True)
    ]


@jax.custom_jvp
def _guarded(arrays: list[Array], there: Array) -> list[Array]:
    del there
    return arrays


@_guarded.defjvp
def _guarded_jvp(primals: Any, tangents: Any) -> tuple[list[Array], list[Array]]:
    clear = lambda arrays: [_or(x, primals[1], 0) for x in arrays]
    return clear(primals[0]), clear(tangents[0])


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
        return _have_finite(jnp.where(jnp.isfinite(rows), rows, jnp.inf).astype(dtype))
    # strung out, rows that are cut along their last axis would be gathered
    zeros = jnp.zeros(rows.shape[1:], dtype)  # times which no digit is lost
    product = jnp.tensordot(
        rows.astype(dtype), zeros, zeros.ndim, precision=lax.Precision.DEFAULT
    )
    return jnp.isfinite(product)


def _finite_products(leaves: Sequence[Factored], dtype: Any) -> Array:
    """Which rows have finite factors and a finite product in every leaf, (B,) bool.

    No entry of a row exceeds the sum over its terms of both factors' largest entries.
    Of a single term that is the largest entry itself. Of several it may be as many
    times larger: so near to the end of a wide dtype, where sums in another order may
    overflow, a row counts as overflown, without any branch, at which a GPU would wait
    for the host. In narrow dtypes, whose ends models do come near to, products are
    looked at where the bound is beyond: a row of one leaf, or layer, at a time, so that
    no stack of them is ever planned for.
    """
    alike = lambda narrow: [leaf for leaf in leaves if _is_narrow(leaf) == narrow]
    bounded = lambda leaves: functools.reduce(
        jnp.logical_and, (_is_bounded(leaf, dtype) for leaf in leaves)
    )
    found = [bounded(alike(False))] if alike(False) else []
    if narrow := alike(True):
        sound = bounded(narrow)
        # leaves are not handed over, which would give rows a left factor of their own
        look = lambda: sound | _are_finite(narrow)
        found.append(lax.cond(jnp.all(sound), lambda: sound, look))
    return functools.reduce(jnp.logical_and, found)


def _is_narrow(leaf: Factored) -> bool:
    """Whether the dtype ends where sound models come to, as float16 does."""
    return float(jnp.finfo(leaf.dtype).max) < _WIDE


def _is_bounded(leaf: Factored, dtype: Any) -> Array:
    """Which rows cannot but be finite, (B,) bool."""
    bound = entry_bounds(leaf, dtype)
    if sum(part.sides[0] for part in parts_of(leaf)) > 1:
        bound *= _OF_SUMS
    sound = jnp.isfinite(bound.astype(leaf.dtype))
    if jax.debug_nans.value:
        sound &= functools.reduce(jnp.logical_and, map(_have_finite, leaf.held))
    return sound.reshape(sound.shape[0], -1).all(1)


def _have_finite(rows: Array) -> Array:
    """Which rows of an array have finite entries, (B,) bool."""
    return jnp.isfinite(rows).reshape(rows.shape[0], -1).all(1)


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
