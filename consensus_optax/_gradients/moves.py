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

from consensus_optax._gradients.cuts import along_axis, cut, strung
from consensus_optax._gradients.jaxprs import NOTHING, Scope, is_in, is_kept
from consensus_optax._gradients.sources import PLACES
from consensus_optax._rows.addition import added, with_array
from consensus_optax._rows.explicit import explicit_mesh
from consensus_optax._rows.layers import LayersFirst
from consensus_optax._rows.outer_product import OuterProduct, is_outer_product
from consensus_optax._rows.sums import each_part, with_held
from consensus_optax._rows.verbs import scale
from consensus_optax._rows.views import reshaped, transposed
from consensus_optax._rows.weighed import Weighed, summed


def total(x: Any, y: Any) -> list[Any] | None:
    """Two uses of one parameter: the terms of both, if they are laid out alike."""
    if x is NOTHING or y is NOTHING:
        return [y if x is NOTHING else x]
    if isinstance(x, LayersFirst) and isinstance(y, LayersFirst):
        joint = total(x.leaf, y.leaf)
        return joint and [LayersFirst(*joint)]
    if not (is_outer_product(x) and is_outer_product(y)):
        return None
    both = added(x, y)
    return None if both is None else [both]


def total_with_shared(eqn: Any, scope: Scope) -> list[Any] | None:
    """A use of a parameter, and an array that is added to it in every row."""
    for var, other in (eqn.invars, eqn.invars[::-1]):
        leaf = scope.read(var)
        if not is_kept(leaf) or not is_in(other, scope.shared):
            continue
        source, axis = scope.shared[other]
        rows = leaf.leaf if isinstance(leaf, LayersFirst) else leaf
        if axis == (rows is not leaf) and rows.shape[0] > 1:
            both = with_array(rows, scope.number(source))
            if both is not None:
                return [both if rows is leaf else LayersFirst(both)]
    return None


def scaled(eqn: Any, values: Sequence[Any]) -> list[Any] | None:
    """A sign change, or a product or quotient with numbers that one factor can take.

    One of ``values`` is kept, and not what divides; the other is one number, or one for
    every row, or for every place of one axis.
    """
    kept = [value for value in values if is_kept(value)]
    if len(kept) != 1 or (eqn.primitive.name == "div" and not is_kept(values[0])):
        return None
    (leaf,) = kept
    rows = leaf.leaf if isinstance(leaf, LayersFirst) else leaf
    numbers = next((value for value in values if value is not leaf), -1.0)
    numbers = jnp.asarray(numbers, rows.dtype)
    if eqn.primitive.name == "div":
        numbers = 1 / numbers
    first = 1 if rows is leaf else 2  # axis of the parameter
    along = [axis for axis in range(numbers.ndim) if numbers.shape[axis] > 1]
    along = [axis for axis in along if axis or rows is not leaf]
    product: Any = None
    if not along:
        each = jnp.broadcast_to(numbers.reshape(-1), rows.shape[:1])
        product = scale(rows, each)
    elif isinstance(rows, OuterProduct) and len(along) == 1 and along[0] >= first:
        product = along_axis(rows, numbers, along[0], first)
    if product is None:
        return None
    return [product if rows is leaf else LayersFirst(product)]


def weighed(eqn: Any, scope: Scope) -> list[Any] | None:
    """A product of kept rows and one array of their shape, until it is summed."""
    for var, other in (eqn.invars, eqn.invars[::-1]):
        leaf = scope.read(var)
        if not isinstance(leaf, OuterProduct) or not is_in(other, scope.shared):
            continue
        source, axis = scope.shared[other]
        if axis == 0 and explicit_mesh(leaf.right) is None:
            array = scope.number(source)
            return [Weighed(leaf, array)] if array.shape == leaf.shape[1:] else None
    return None


def summed_up(eqn: Any, rows: Any) -> list[Any] | None:
    """The sum of such a product."""
    if not isinstance(rows, Weighed):
        return None
    total = summed(rows, eqn.params["axes"])
    return None if total is None else [total.astype(eqn.outvars[0].aval.dtype)]


def cut_apart(eqn: Any, leaf: Any) -> list[Any] | None:
    """A slice, split, pad or reversal."""
    rows = leaf.leaf if isinstance(leaf, LayersFirst) else leaf
    if not isinstance(rows, OuterProduct):
        return None
    parts = cut(eqn, rows, 1 if rows is leaf else 2)
    return parts and [part if rows is leaf else LayersFirst(part) for part in parts]


def put_together(eqn: Any, leaves: Sequence[Any]) -> list[Any] | None:
    """A concatenation of which every part is kept."""
    axis = eqn.params["dimension"]
    if not all(isinstance(leaf, OuterProduct) for leaf in leaves) or axis == 0:
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
            to = lambda part: dataclasses.replace(part, dtype=jnp.dtype(dtype))
            return [each_part(to, leaf)]
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
        if jax.typeof(factor).sharding.mesh == sharding.mesh:
            return factor
        one = NamedSharding(sharding.mesh, PartitionSpec())  # of all rows
        shared = factor.shape[0] == 1 != leaf.shape[0]
        return jax.sharding.reshard(factor, one if shared else rows)

    return with_held(leaf, list(map(move, leaf.held)))
