"""Inner products of rows that are never held together, block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from consensus_optax._rows import verbs
from consensus_optax._typing import Array
from consensus_optax.engines.microbatches.batches import Block, Microbatches


def gramians(
    micro: Microbatches,
    index: Array,
    leaves: list[Any],
    read: Callable[[Block], list[Any]],
    dtype: Any,
) -> list[Array]:
    """Inner products with all microbatches up to this one, (k, m, m), later ones 0.

    Args:
      micro: all microbatches.
      index: which one this is.
      leaves: its rows as they are read.
      read: the same of any microbatch.
      dtype: of decisions.
    """

    def against(other: Any, filled: list[Array]) -> list[Array]:
        triples = zip(filled, leaves, read(micro.block(other)), strict=True)
        return [
            out.at[other].set(verbs.cross_gramian(x, y, dtype)) for out, x, y in triples
        ]

    count, size = micro.indices.shape
    empty = [jnp.zeros((count, size, size), dtype) for _ in leaves]
    return lax.fori_loop(0, index + 1, against, micro.arranged.varying(empty))
