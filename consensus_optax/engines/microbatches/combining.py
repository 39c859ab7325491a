"""Rows combined microbatch by microbatch, with weights known ahead or found there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax._typing import Array
from consensus_optax.engines.microbatches.batches import Block, Microbatches

# A block to its rows' weights, (m,) or (leaves, m), and to what else it tells.
Weigh = Callable[[Block], tuple[Array, Any]]


def combined(micro: Microbatches, weigh: Weigh) -> tuple[list[Array], Any, Any]:
    """The combination of all rows, what ``weigh`` told, and what the pass left behind.

    The latter two are of each block, one after the other.
    """

    def part(block: Block) -> tuple[list[Array], Any]:
        weights, told = weigh(block)
        return block.source.combine(weights), told

    def step(carry: list[Array], block: Block) -> tuple[list[Array], Any]:
        update, told = part(block)
        return jax.tree.map(jnp.add, carry, update), (told, kept_of(block))

    shapes = jax.eval_shape(lambda: part(micro.block(0))[0])
    zeros = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in shapes]
    update, (told, kept) = micro.scan(step, zeros)
    return update, told, kept


def given(micro: Microbatches, weights: Array) -> Weigh:
    """Weights that are known, (B,) or (leaves, B)."""
    fill = {"mode": "fill", "fill_value": 0}
    own = lambda block: weights.at[..., micro.indices[block.index]].get(**fill)
    return lambda block: (own(block), None)


def kept_of(block: Block) -> Any:
    """What is known of a block's rows once somebody has looked at them."""
    return block.weights, block.num_nonfinite, block.value, block.factors
