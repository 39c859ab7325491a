"""Norms of rows from above: what a bound on what one row adds has to divide by.

The norm of a factored row is a sum of products that may cancel, and rounding then
leaves anything of it, zero as well: a row that was weighted by such a norm could be
arbitrarily longer than it should. What is added here follows from sizes and dtypes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from consensus_optax._rows import verbs
from consensus_optax._rows.gramians import factor_products
from consensus_optax._rows.outer_product import (
    Factored,
    OuterProduct,
    is_outer_product,
)
from consensus_optax._rows.parts import of_both, own_products
from consensus_optax._rows.rounding import of_sum
from consensus_optax._rows.sums import parts_of
from consensus_optax._typing import Array

# One operand of a product that the model itself takes at its default precision is
# rounded to bfloat16 on a TPU, and to more digits on a GPU.
_ROUNDED_OPERAND = 2.0**-8


def squared_norm_bounds(leaf: verbs.AnyLeaf, dtype: Any) -> Array:
    """Squares of at least every row's norm, (B,): of the row, and as it is combined.

    Close to the norm itself, but where terms of a sum of outer products cancel.
    """
    if verbs.has_layers(leaf):
        return verbs.over_layers(lambda x: squared_norm_bounds(x, dtype), leaf)
    if isinstance(leaf, verbs.Mixed):
        leaf = verbs.as_array(leaf, dtype)
    if is_outer_product(leaf):
        return _of_products(leaf, dtype)
    return _of_arrays(leaf.astype(dtype), dtype)


def _of_arrays(rows: Array, dtype: Any) -> Array:
    """Squares are rounded, and lost where they are too small a number."""
    flat = rows.reshape(rows.shape[0], -1)
    size = flat.shape[1]
    ones = jnp.ones(size, dtype)
    squares = jnp.matmul(flat * flat, ones, precision=lax.Precision.HIGHEST)
    lost = size * float(jnp.finfo(dtype).tiny)
    return squares * (1 + 2 * of_sum(size, dtype)) + lost


def _of_products(leaf: Factored, dtype: Any) -> Array:
    """Of a sum of products, which may cancel, and whose factors' may underflow.

    With m the sum of the terms' norms, a squared norm is off by the rounding of its
    products times m squared, and what is combined by that of T terms times m.
    """
    seen = [_of_part(part, dtype) for part in parts_of(leaf)]
    squares, error, magnitude, lost, combined = (
        functools.reduce(jnp.add, each) for each in zip(*seen, strict=True)
    )
    for x, y in itertools.combinations(parts_of(leaf), 2):
        squares += 2 * own_products(x, y, dtype)
        (s, m, n), (t, *_) = x.sides, y.sides
        error += 2 * sum(of_sum(size, dtype) for size in (m * n, s * n, s * t))
    tiny = float(jnp.finfo(dtype).tiny)
    squares = jnp.maximum(squares, 0) + 2 * error * magnitude**2 + tiny * lost
    bound = jnp.sqrt(squares) + combined * magnitude
    bound = bound * bound * (1 + 8 * of_sum(1, dtype)) + tiny
    return jnp.where(jnp.isnan(bound), jnp.inf, bound)  # of 0 times an overflow


def _of_part(leaf: OuterProduct, dtype: Any) -> tuple[Any, ...]:
    """Squares, by how much of the magnitude squared they are off, magnitudes, what is
    lost in underflow, and by how much of the magnitude a combination is off.
    """
    terms, m, n = leaf.sides
    right = _lengths(leaf.right.astype(dtype))
    left = jnp.ones_like(right)  # of a look-up
    if not leaf.is_look_up:
        left = _lengths(leaf.left.astype(dtype))
    magnitude = (left * right).sum(1)  # (B,)
    if leaf.is_one_array:
        squares, error = verbs.squared_norms(leaf, dtype), 2 * of_sum(m * n, dtype)
    elif terms * (m + n) <= m * n:
        products = factor_products(leaf, leaf, "bsx,btx->bst", dtype)
        squares = of_both(*products).sum((1, 2))
        error = of_sum(m, dtype) + of_sum(n, dtype) + of_sum(terms**2, dtype)
    else:
        exact = dataclasses.replace(
            leaf, dtype=np.dtype(dtype), precision=lax.Precision.HIGHEST
        )
        rows = exact.materialize().reshape(magnitude.shape[0], -1)
        ones = jnp.ones(m * n, dtype)
        squares = jnp.matmul(rows * rows, ones, precision=lax.Precision.HIGHEST)
        error = 2 * of_sum(m * n, dtype) + 2 * of_sum(terms, dtype)
    lost = m * right.sum(1) ** 2 + n * left.sum(1) ** 2 + terms**2 + m * n
    combined = 2 * of_sum(terms + 2, dtype) + _operands(leaf, dtype)
    return squares, error, magnitude, lost, combined


def _lengths(factor: Array) -> Array:
    """Norms of the terms, (B, T), of squares that are lost as well."""
    lost = factor.shape[-1] * float(jnp.finfo(factor.dtype).tiny)
    return jnp.sqrt((factor * factor).sum(-1) + lost)


def _operands(leaf: OuterProduct, dtype: Any) -> Array:
    """What is lost of a product's operands where it is taken on an accelerator."""
    given = leaf.precision if isinstance(leaf.precision, tuple) else (leaf.precision,)
    exact = leaf.is_look_up or all(x == lax.Precision.HIGHEST for x in given)
    narrow = 0.0 if exact else 2 * _ROUNDED_OPERAND
    return lax.platform_dependent(
        cpu=lambda: jnp.zeros((), dtype), default=lambda: jnp.full((), narrow, dtype)
    )
