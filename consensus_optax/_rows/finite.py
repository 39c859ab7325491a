"""Whether rows kept as factors are finite: of finite factors the product may not be."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax

from consensus_optax._rows.outer_product import OuterProduct
from consensus_optax._typing import Array


def finite_products(leaf: OuterProduct, dtype: Any) -> Array:
    """Which rows of one layer have finite factors and a finite product, (B,) bool.

    By Cauchy and Schwarz no entry of a row exceeds the product of its factors' norms.
    Only where that bound is beyond ``leaf.dtype`` are products looked at, a row at a
    time, so that no stack of them is ever planned for.
    """
    squares = functools.partial(_squares, dtype=dtype)
    bound = jnp.sqrt(squares(leaf.right))
    if leaf.is_look_up:  # a term is added to one line of the table
        bound = bound * leaf.sides[0]
    else:
        bound = bound * jnp.sqrt(squares(leaf.left))
    # half, since norms are rounded; a bound of nan is none
    sound = bound < 0.5 * jnp.asarray(jnp.finfo(leaf.dtype).max, dtype)
    look = lambda leaf, sound: sound | _are_finite(leaf)
    return lax.cond(jnp.all(sound), lambda leaf, sound: sound, look, leaf, sound)


def _squares(factor: Array, dtype: Any) -> Array:
    """Sum of squares of every row's entries, (B,); inf or nan where one is."""
    flat = factor.reshape(factor.shape[0], -1).astype(dtype)
    return jnp.einsum("bk,bk->b", flat, flat)


def _are_finite(leaf: OuterProduct) -> Array:
    """The same of factors and products as they are, (B,)."""

    def is_finite(factors: tuple[Array, Array]) -> Array:
        floating = [x for x in factors if jnp.issubdtype(x.dtype, jnp.floating)]
        product = leaf.contract(*factors).astype(leaf.dtype)
        each = [jnp.isfinite(x).all() for x in (*floating, product)]
        return functools.reduce(jnp.logical_and, each)

    return lax.map(is_finite, (leaf.left, leaf.right))
