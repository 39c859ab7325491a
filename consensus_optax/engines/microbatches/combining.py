"""Rows combined microbatch by microbatch, with weights known ahead or found there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax._rows.explicit import zeros_as
from consensus_optax._typing import Array, Tree
from consensus_optax.engines.microbatches.batches import Block, Microbatches

# A block to its rows' weights, (m,) or (leaves, m), and to what else it tells.
Weigh = Callable[[Block], tuple[Array, Any]]


def summed(
    micro: Microbatches, part: Callable[[Block], tuple[Tree, Any]]
) -> tuple[Tree, Any]:
    """What is made of each block, added up, and what else it tells, (k, ...)."""
    if micro.indices.shape[0] == 1:
        total, told = part(micro.block(0))
        return total, jax.tree.map(lambda leaf: leaf[None], told)

    def step(total: Tree, block: Block) -> tuple[Tree, Any]:
        own, told = part(block)
        return jax.tree.map(jnp.add, total, own), told

    shapes = jax.eval_shape(lambda: part(micro.block(0))[0])
    zeros = zeros_as(shapes)
    return micro.scan(step, zeros)


def combined(micro: Microbatches, weigh: Weigh) -> tuple[list[Array], Any, Any]:
    """The combination of all rows, what ``weigh`` told, and what the pass left behind.

    The latter two are of each block, one after the other.
    """

    def part(block: Block) -> tuple[list[Array], Any]:
        weights, told = weigh(block)
        return block.source.combine(weights), (told, kept_of(block))

    update, (told, kept) = summed(micro, part)
    return update, told, kept


def given(micro: Microbatches, weights: Array) -> Weigh:
    """Weights that are known, (B,) or (leaves, B)."""
    fill = {"mode": "fill", "fill_value": 0}
    own = lambda block: weights.at[..., micro.indices[block.index]].get(**fill)
    return lambda block: (own(block), None)


def kept_of(block: Block) -> Any:
    """What is known of a block's rows once somebody has looked at them."""
    return block.weights, block.num_nonfinite, block.value, block.factors
