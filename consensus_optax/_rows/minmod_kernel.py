"""Minmod over rows that are matrix products: the fold as the product's epilogue."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from consensus_optax._rows.statistics import minmod
from consensus_optax._typing import Array


def minmod_of_matmuls(
    a: Array, d: Array, order: Array, *, block: int = 64, interpret: bool = False
) -> Array:
    """Minmod over i of a_iᵀ d_i, row order[i] in place of row i, tile by tile.

    Each program holds one tile of the update: it multiplies the rows' factors one
    after the other and merges each product while it is in registers, so nothing of
    size B M N, and no carry, goes through memory. A tile on which no coordinate is
    agreed any more stops multiplying.

    Args:
      a: (B, T, M) left factors.
      d: (B, T, N) right factors.
      order: (B,), an absent row points to a present one.
      block: side of a tile, a power of two of at least 16.
      interpret: run as plain JAX operations, on any device.

    Returns:
      (M, N), float32.
    """
    rows, terms, m = a.shape
    n = d.shape[2]
    depth = max(pl.next_power_of_2(terms), 16)
    tiles = pl.cdiv(m, block), pl.cdiv(n, block)
    # zeros add nothing to a product and agree on nothing
    fill = lambda x, size: jnp.pad(
        x[order], ((0, 0), (0, depth - terms), (0, size * block - x.shape[2]))
    )
    out = pl.pallas_call(
        functools.partial(_kernel, rows=rows),
        grid=tiles,
        in_specs=[
            pl.BlockSpec((rows, depth, block), lambda i, j: (0, 0, i)),
            pl.BlockSpec((rows, depth, block), lambda i, j: (0, 0, j)),
        ],
        out_specs=pl.BlockSpec((block, block), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct(
            (tiles[0] * block, tiles[1] * block), jnp.float32
        ),
        interpret=interpret,
    )(fill(a, tiles[0]), fill(d, tiles[1]))
    return out[:m, :n]


def _kernel(a_ref: Any, d_ref: Any, out_ref: Any, *, rows: int) -> None:
    """One tile: products of all rows, merged as they come."""

    def product(i: Any) -> Array:
        contract_terms = (((0,), (0,)), ((), ()))
        return lax.dot_general(
            a_ref[i],
            d_ref[i],
            contract_terms,
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )

    def goes_on(state: tuple[Array, Array]) -> Array:
        return (state[0] < rows) & (jnp.sum(jnp.abs(state[1])) > 0)

    def merge(state: tuple[Array, Array]) -> tuple[Array, Array]:
        return state[0] + 1, minmod(state[1], product(state[0]))

    out_ref[...] = lax.while_loop(goes_on, merge, (jnp.int32(1), product(0)))[1]
