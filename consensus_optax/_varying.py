"""Loop carries inside ``jax.shard_map``, whose types say what differs over devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax._typing import Array


def varying_like(start: Array, *given: Any) -> Array:
    """A constant that a loop starts from, typed as what the loop will make of it.

    A carry must have one type throughout, and a constant does not vary over devices.
    Nothing is computed: a choice between equals goes when compiled, and with it what it
    depends on.
    """
    for leaf in jax.tree.leaves(given):
        start = jnp.where(jnp.any(leaf != leaf), start, start)
    return start
