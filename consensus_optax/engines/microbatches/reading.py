"""What inner products are taken of: a microbatch's rows, and an update, as asked."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax._rows import verbs
from consensus_optax._rules.kinds import Reads
from consensus_optax._running.source import Asked
from consensus_optax._typing import Array
from consensus_optax.engines.microbatches.batches import Block


def rows_read(
    asked: Asked, block: Block, center: list[Array] | None, indices: Array
) -> list[Any]:
    """The leaves of which inner products are asked for.

    Args:
      asked: the products.
      block: the microbatch.
      center: a row that is taken off, or None.
      indices: (k, m) which rows each microbatch has.
    """
    leaves, dtype = block.stack.leaves, block.stack.dtype
    if center is not None:
        pairs = zip(leaves, center, strict=True)
        leaves = [verbs.as_array(x, dtype) - c.astype(dtype)[None] for x, c in pairs]
    if asked.scale is not None:
        scale = asked.scale
        if scale.ndim:  # a row's own
            scale = scale.at[indices[block.index]].get(mode="fill", fill_value=1)
        leaves = [verbs.times(leaf, scale) for leaf in leaves]
    if asked.reads == Reads.SIGNS:
        return [verbs.signs(leaf, dtype) for leaf in leaves]
    return leaves


def update_read(
    asked: Asked, update: list[Array], center: list[Array] | None
) -> list[Array]:
    """An update in the same terms."""
    if center is not None:
        pairs = zip(update, center, strict=True)
        update = [leaf - c.astype(leaf.dtype) for leaf, c in pairs]
    if asked.scale is not None:
        update = [leaf * asked.scale for leaf in update]
    return [jnp.sign(leaf) for leaf in update] if asked.reads == Reads.SIGNS else update
