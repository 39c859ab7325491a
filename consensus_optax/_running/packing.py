"""Small arrays strung together: many small leaves need not make many small loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rows.verbs import AnyLeaf, Mixed
from consensus_optax._typing import Array

# Coordinates below which an array is copied rather than given a loop of its own: biases
# and norms. Halves the compile time of a transformer.
_SMALL = 2**13


class Packed(NamedTuple):
    """Leaves for work that looks at coordinates or sums over leaves.

    Attributes:
      leaves: the large leaves, then one array (B, p) of all the small ones.
      unpack: one result of parameter shape for each packed leaf, to one for each leaf.
    """

    leaves: Sequence[AnyLeaf]
    unpack: Callable[[list[Array]], list[Array]]


def pack(leaves: Sequence[AnyLeaf], dtype: Any) -> Packed:
    """Strings the small arrays among leaves together, in the dtype of decisions."""
    small = [i for i, leaf in enumerate(leaves) if _is_small(leaf)]
    if len(small) < 2:
        return Packed(leaves, lambda results: results)
    large = [i for i in range(len(leaves)) if i not in small]
    arrays: list[Any] = [leaves[i] for i in small]
    flat = [leaf.reshape(leaf.shape[0], -1).astype(dtype) for leaf in arrays]
    ends = [sum(part.shape[1] for part in flat[: k + 1]) for k in range(len(flat))]

    def unpack(results: list[Array]) -> list[Array]:
        *others, strung = results
        parts = jnp.split(strung, ends[:-1])
        shaped = [
            part.reshape(leaf.shape[1:])
            for part, leaf in zip(parts, arrays, strict=True)
        ]
        by_index = dict(zip([*large, *small], [*others, *shaped], strict=True))
        return [by_index[i] for i in range(len(leaves))]

    return Packed([*(leaves[i] for i in large), jnp.concatenate(flat, 1)], unpack)


def _is_small(leaf: AnyLeaf) -> bool:
    if is_outer_product(leaf) or isinstance(leaf, Mixed):
        return False
    return math.prod(leaf.shape[1:]) < _SMALL
