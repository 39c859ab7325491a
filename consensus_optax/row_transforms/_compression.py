"""What compressing rows and feeding back its error share: a leaf of rows and keys."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._rows.explicit import freed, spec_of
from consensus_optax._rows.verbs import Leaf
from consensus_optax._typing import Array, AxisName
from consensus_optax.compressors._compressor import (
    Compressor,
    keys_of_leaf,
    keys_of_rows,
)


def checked_axes(compressor: Compressor, given: AxisName | None) -> tuple[str, ...]:
    """Mesh axes over which rows differ, for numbers that must differ there, too.

    Raises:
      ValueError: when traced inside of ``shard_map``, they are needed and not known.
    """
    inside = jax.sharding.get_abstract_mesh().manual_axes
    if not inside or compressor.key is None:
        return ()
    if given is None:
        raise ValueError(
            "`axis_name` must name the mesh axes that rows are sharded along, inside "
            f"of a `jax.shard_map` over {tuple(inside)}, or devices would draw the "
            "same numbers for different rows; got None. Where all devices have the "
            "same rows, give ()."
        )
    return () if given == () else _check.axis_names("axis_name", given)


def row_keys(
    compressor: Compressor,
    step: Array,
    axes: tuple[str, ...],
    num_rows: int,
    clients: Array | None = None,
    num_clients: int = 0,
) -> Array | None:
    """A key for every row, by its number among the rows of all, or by its client's.

    Clients of ``num_clients`` are those of each device apart; else numbers of all.
    """
    index = jnp.arange(num_rows, dtype=jnp.int32)
    if clients is not None:
        index, num_rows = clients, num_clients
    if axes:
        index = lax.axis_index(axes) * num_rows + index
    return keys_of_rows(compressor, step, index)


def compressed_leaf(compressor: Compressor, leaf: Leaf, keys: Any, number: int) -> Leaf:
    """A leaf of rows as it arrives, in float32; as factors where these are sent."""
    whole = isinstance(leaf, jax.Array) and compressor.factor is None
    first = spec_of(jax.tree.leaves(leaf)[0])
    lies = first if whole else PartitionSpec(first[0])

    def one(row: Array, key: Any) -> Array:
        message = compressor.compress(row, key)
        return compressor.decompress(message, row.shape, key)

    def run(leaf: Leaf, keys: Any) -> Leaf:
        if compressor.factor is not None:
            return compressor.factor(leaf, keys)
        return jax.vmap(one)(verbs.as_array(leaf, leaf.dtype), keys)

    return freed(run, (leaf, keys_of_leaf(keys, number)), lies)
