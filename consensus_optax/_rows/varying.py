"""Values inside ``jax.shard_map``, whose types say what differs over devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._typing import Array, Tree


def varying_like(start: Tree, *given: Any) -> Tree:
    """What is the same on all devices, typed as what will be computed from it.

    A loop's carry must have one type throughout, and a constant that it starts from
    does not vary over devices. The gradient by parameters that do not vary is summed
    over devices, whose rows would be mixed. Nothing is computed: a choice between
    equals goes when compiled, and with it what it depends on. Outside of ``shard_map``
    there is nothing to do.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return start

    def cast(leaf: Array) -> Array:
        for other in map(_numbers, jax.tree.leaves(given)):
            leaf = lax.select_n(jnp.any(other != other), leaf, leaf)
        return leaf

    return jax.tree.map(cast, start)


def _numbers(leaf: Array) -> Array:
    """Random keys are compared by what they hold."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf
