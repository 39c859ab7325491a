"""What transformations with a memory of updates share: which updates enter it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax._rows import verbs
from consensus_optax._rows.trees import floating, memory
from consensus_optax._typing import Array, Tree


def no_update_yet(params: Tree) -> Tree:
    """Zeros like the parameters, float32 at least."""
    return memory(params, lambda p: jnp.zeros_like(p, verbs.decision_dtype(p)))


def inner_product(x: Array, y: Array) -> Array:
    """Of two arrays of one shape, which stay as they are cut, ()."""
    return jnp.sum(x * y)


def is_sound(leaves: list[Any]) -> Array:
    """Whether an update is finite and not all zero, () bool.

    A zero update (empty consensus) is no observation, and one that is not finite would
    stay in the memory for good.
    """
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in leaves if floating(leaf)]
    moved = [jnp.any(leaf != 0) for leaf in leaves if floating(leaf)]
    if not finite:
        return jnp.zeros((), bool)
    return jnp.all(jnp.stack(finite)) & jnp.any(jnp.stack(moved))


def or_zero(sound: Array, leaf: Any, update: Array) -> Array:
    """The update where it is sound, in the dtype of the leaf that came in, else 0."""
    return jnp.where(sound, update, 0).astype(leaf.dtype)
