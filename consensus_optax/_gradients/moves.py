"""Operations on a gradient that is kept as factors, done to the factors.

Whatever gives None here is multiplied out where it is met.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from consensus_optax._gradients.cuts import cut, strung
from consensus_optax._gradients.jaxprs import NOTHING, is_kept
from consensus_optax._gradients.sources import PLACES
from consensus_optax._rows.explicit import concatenated
from consensus_optax._rows.layers import LayersFirst
from consensus_optax._rows.outer_product import OuterProduct, is_outer_product
from consensus_optax._rows.verbs import scale
from consensus_optax._rows.views import reshaped, transposed, with_dense_left


def total(x: Any, y: Any) -> list[Any] | None:
    """Two uses of one parameter: the terms of both, if they are laid out alike."""
    if x is NOTHING or y is NOTHING:
        return [y if x is NOTHING else x]
    if isinstance(x, LayersFirst) and isinstance(y, LayersFirst):
        joint = total(x.leaf, y.leaf)
        return joint and [LayersFirst(*joint)]
    if not (is_outer_product(x) and is_outer_product(y)):
        return None
    if x.right.ndim != y.right.ndim:
        return None
    layout = lambda p: (p.row_shape, p.steps, p.dtype, p.precision)
    if layout(x) != layout(y) or x.sides[1:] != y.sides[1:]:
        return None
    x, y = with_dense_left(x), with_dense_left(y)
    lefts = [z.left if x.is_shared and y.is_shared else z.factors[0] for z in (x, y)]
    left, right = concatenated(*lefts), concatenated(x.right, y.right)
    return [OuterProduct(left, right, *layout(x))]


def scaled(eqn: Any, values: Sequence[Any]) -> list[Any] | None:
    """A sign change, or a product or quotient with one number for every row.

    One of ``values`` is kept.
    """
    leaf = next((value for value in values if is_kept(value)), None)
    if leaf is None or (eqn.primitive.name == "div" and not is_kept(values[0])):
        return None
    rows = leaf.leaf if isinstance(leaf, LayersFirst) else leaf
    number = next((value for value in values if value is not leaf), -1.0)
    number = jnp.asarray(number, rows.dtype)
    if eqn.primitive.name == "div":
        number = 1 / number
    if number.ndim and rows is not leaf:  # by layer
        return None
    each = jnp.broadcast_to(number.reshape(-1), rows.shape[:1])
    product: Any = scale(rows, each)
    return [LayersFirst(product) if isinstance(leaf, LayersFirst) else product]


def cut_apart(eqn: Any, leaf: Any) -> list[Any] | None:
    """A slice, split, pad or reversal."""
    if isinstance(leaf, LayersFirst):
        parts = cut(eqn, leaf.leaf, 2)
        return parts and [LayersFirst(part) for part in parts]
    return cut(eqn, leaf, 1) if is_outer_product(leaf) else None


def put_together(eqn: Any, leaves: Sequence[Any]) -> list[Any] | None:
    """A concatenation of which every part is kept."""
    axis = eqn.params["dimension"]
    if not all(map(is_outer_product, leaves)) or axis == 0:
        return None
    parts = strung(leaves, axis - 1)
    add = lambda sum_, part: sum_ and total(sum_[0], part)
    return parts and functools.reduce(add, parts[1:], parts[:1])


def moved(eqn: Any, leaf: Any) -> list[Any] | None:
    """A marked operation that moves numbers without changing the example axis."""
    if not is_kept(leaf):
        return None
    params, shape = eqn.params, eqn.outvars[0].aval.shape
    if eqn.primitive.name == "reshard":
        return [_resharded(leaf, params["dst_sharding"])]
    if isinstance(leaf, LayersFirst):
        if eqn.primitive.name == "transpose":
            rows = leaf.transposed(params["permutation"])
            return None if rows is None else [rows]
        if eqn.primitive.name not in (*PLACES, "copy", "convert_element_type"):
            return None
        within = moved(eqn, leaf.leaf)
        return within and [LayersFirst(*within)]
    match eqn.primitive.name:
        case name if name in (*PLACES, "copy"):
            return [leaf]
        case "convert_element_type":
            dtype = params["new_dtype"]
            if not jnp.issubdtype(dtype, jnp.floating):
                return None
            return [dataclasses.replace(leaf, dtype=jnp.dtype(dtype))]
        case "transpose":
            axes = params["permutation"]
            if axes[0] != 0:
                return None
            return [transposed(leaf, tuple(axis - 1 for axis in axes[1:]))]
        case "broadcast_in_dim":
            if math.prod(shape) != leaf.size or params["broadcast_dimensions"][0] != 0:
                return None
        case "reshape":
            if params["dimensions"] is not None:
                return None
    return [reshaped(leaf, shape[1:])] if shape and shape[0] == leaf.shape[0] else None


def _resharded(leaf: Any, sharding: Any) -> Any:
    """Factors that enter or leave a part of a program with other kinds of mesh axes."""
    if isinstance(leaf, LayersFirst):
        spec = PartitionSpec(*sharding.spec[1:])
        return LayersFirst(_resharded(leaf.leaf, sharding.update(spec=spec)))
    rows = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))

    def move(factor: Any) -> Any:
        same = jax.typeof(factor).sharding.mesh == sharding.mesh
        return factor if same else jax.sharding.reshard(factor, rows)

    return dataclasses.replace(leaf, left=move(leaf.left), right=move(leaf.right))
