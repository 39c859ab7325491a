"""Folds over microbatches: one pass, as much memory as the parameters take."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax._rows.statistics import Statistic, merge_present
from consensus_optax._rules.kinds import Fold
from consensus_optax._running.run import fold_all
from consensus_optax._typing import Array
from consensus_optax.engines.microbatches.batches import Block, Microbatches


class Merged(NamedTuple):
    """Statistics of the rows so far, and whether there has been any row."""

    statistics: list[list[Array]]
    started: Array


class Streamed(NamedTuple):
    """What one pass over all microbatches leaves behind, rows in their order."""

    merged: list[list[Array]]
    weights: Array
    num_nonfinite: Array
    value: Any


def stream(rule: Fold, microbatches: Microbatches) -> Streamed:
    """Merges the statistics of all rows, microbatch by microbatch."""

    def observe(block: Block) -> list[list[Array]]:
        return fold_all(rule, block.stack.leaves, block.rows)

    def step(carry: Merged, block: Block) -> tuple[Merged, Any]:
        any_row = jnp.any(block.weights > 0)

        def merge(statistic: Statistic, old: Array, new: Array) -> Array:
            return merge_present(statistic.merge, old, new, carry.started, any_row)

        triples = zip(rule.statistics, carry.statistics, observe(block), strict=True)
        merged = [
            [merge(statistic, *pair) for pair in zip(old, new, strict=True)]
            for statistic, old, new in triples
        ]
        kept = (block.weights, block.num_nonfinite, block.value)
        return Merged(merged, carry.started | any_row), kept

    shapes = jax.eval_shape(lambda: observe(microbatches.block(0)))
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    start = Merged(empty, jnp.zeros((), bool))
    end, (weights, num_nonfinite, value) = microbatches.scan(step, start)
    weights, value = microbatches.in_order((weights, value))
    return Streamed(end.statistics, weights, num_nonfinite.sum(), value)
