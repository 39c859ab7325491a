"""How large rows are, to a few powers of ten: by their factors, at little cost."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax

from consensus_optax._rows.outer_product import Factored, OuterProduct, is_outer_product
from consensus_optax._rows.sums import total_of
from consensus_optax._rows.verbs import AnyLeaf, Mixed, largest_entries
from consensus_optax._typing import Array

_product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def entry_bounds(leaf: Factored, dtype: Any) -> Array:
    """What no entry of a row exceeds but by rounding, (B,), or of layers (B, L).

    The sum over its terms of both factors' largest entries; of one term that is the
    largest entry itself. It is inf or nan where a factor is not finite.
    """

    def of_part(part: OuterProduct) -> Array:
        # a term of a look-up is added to one line of the table
        bounds = largest_entries(part.right, dtype)
        if not part.is_look_up:
            bounds = largest_entries(part.left, dtype) * bounds
        return bounds.sum(-1)

    return total_of(of_part, leaf)


def rough_squares(leaf: AnyLeaf, dtype: Any) -> Array:
    """Squared norms, (B,): of arrays to rounding, of others from above.

    Beyond what a float can hold they are 0 or inf, and nan of rows that are not finite.
    """
    if isinstance(leaf, Mixed):
        used = jnp.any(leaf.matrix != 0, 0)
        lengths = jnp.sqrt(jnp.where(used, rough_squares(leaf.leaf, dtype), 0))
        return _product("ij,j->i", jnp.abs(leaf.matrix), lengths) ** 2
    if is_outer_product(leaf):
        _, m, n = leaf.sides
        bounds = entry_bounds(leaf, dtype)
        squares = (bounds * bounds * (m * n)).reshape(bounds.shape[0], -1)
        return squares.sum(1)
    flat = leaf.reshape(leaf.shape[0], -1).astype(dtype)
    return _product("bp,bp->b", flat, flat)
