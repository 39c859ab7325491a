"""Folds over microbatches: one pass, as much memory as the parameters take."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax import _leaves
from consensus_optax._rules import Fold
from consensus_optax._typing import Array
from consensus_optax.engines._microbatches import Block, Microbatches


class Merged(NamedTuple):
    """Statistics of the rows so far, and whether there has been any row."""

    statistics: list[tuple[Array, ...]]
    started: Array


class Streamed(NamedTuple):
    """What one pass over all microbatches leaves behind, rows in their order."""

    merged: list[tuple[Array, ...]]
    weights: Array
    num_nonfinite: Array
    value: Any


def stream(rule: Fold, microbatches: Microbatches) -> Streamed:
    """Merges the statistics of all rows, microbatch by microbatch."""

    def observe(block: Block) -> list[tuple[Array, ...]]:
        return [
            _leaves.fold(leaf, rule.statistics, block.weights, block.order)
            for leaf in block.stack.leaves
        ]

    def step(carry: Merged, block: Block) -> tuple[Merged, Any]:
        any_row = jnp.any(block.weights > 0)

        def merge(old: tuple[Array, ...], new: tuple[Array, ...]) -> tuple[Array, ...]:
            # a block without rows holds nothing that may be merged
            return tuple(
                jnp.where(
                    any_row & carry.started,
                    statistic.merge(x, y),
                    jnp.where(any_row, y, x),
                )
                for statistic, x, y in zip(rule.statistics, old, new, strict=True)
            )

        pairs = zip(carry.statistics, observe(block), strict=True)
        merged = Merged([merge(*pair) for pair in pairs], carry.started | any_row)
        return merged, (block.weights, block.num_nonfinite, block.value)

    shapes = jax.eval_shape(lambda: observe(microbatches.block(0)))
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    start = Merged(empty, jnp.zeros((), bool))
    end, (weights, num_nonfinite, value) = microbatches.scan(step, start)
    weights, value = microbatches.in_order((weights, value))
    return Streamed(end.statistics, weights, num_nonfinite.sum(), value)
