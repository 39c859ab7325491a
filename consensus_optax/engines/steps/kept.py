"""What is kept of a batch as it is, and all batches put together."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from consensus_optax._rows.explicit import automatic, spec_of
from consensus_optax._rows.outer_product import Factored, is_outer_product
from consensus_optax._rows.sums import parts_of as products_of
from consensus_optax._rows.sums import with_held
from consensus_optax._rows.verbs import Leaf
from consensus_optax._typing import Array, Tree


def parts_of(leaves: list[Leaf]) -> list[tuple[Array, ...]]:
    """The arrays that rows consist of: themselves, or their factors, (B, ...)."""
    return list(map(_parts, leaves))


def _parts(leaf: Leaf) -> tuple[Array, ...]:
    if not is_outer_product(leaf):
        return (leaf,)
    if _shares_an_array(leaf):
        return (leaf.materialize(),)
    return tuple(x for part in products_of(leaf) for x in part.factors)


def _shares_an_array(leaf: Factored) -> bool:
    """Whether every row would need a copy of what all of a batch share."""
    return any(part.is_one_array for part in products_of(leaf))


def from_parts(leaf: Leaf, parts: tuple[Array, ...]) -> Leaf:
    """Rows like those of a leaf, of other parts."""
    if not is_outer_product(leaf) or _shares_an_array(leaf):
        return parts[0]
    return with_held(leaf, parts)


def places(batch: Tree, num_batches: int) -> Tree:
    """Zeros for so many batches, every array (k, B, ...)."""

    def zeros(leaf: Any) -> Array:
        shape = (num_batches, *leaf.shape)
        if not isinstance(leaf, jax.Array):  # only its shape is known
            return jnp.zeros(shape, leaf.dtype)
        make = lambda leaf: jnp.broadcast_to(jnp.zeros_like(leaf), shape)
        return automatic(make, (leaf,), PartitionSpec(None, *spec_of(leaf)))

    return jax.tree.map(zeros, batch)


def with_batch(kept: Tree, batch: Tree, index: Array) -> Tree:
    """The batches so far with one more in its place."""

    def put(all_of: Array, leaf: Array) -> Array:
        write = lambda all_of, leaf, index: all_of.at[index].set(leaf)
        return automatic(write, (all_of, leaf, index), spec_of(all_of))

    return jax.tree.map(put, kept, batch)


def together(kept: Tree) -> Tree:
    """The rows of all batches, one batch after the other, (k B, ...)."""

    def join(all_of: Array) -> Array:
        merge = lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
        return automatic(merge, (all_of,), PartitionSpec(*spec_of(all_of)[1:]))

    return jax.tree.map(join, kept)
