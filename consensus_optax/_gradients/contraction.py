"""Stopping a gradient before its last contraction.

The gradient of almost every large parameter ends in ``transpose o dot_general`` with
the example axis as batch axis. Its jaxpr is evaluated as it stands, except that these
last contractions are kept as the two operands they would multiply. Nothing is known of
layers or of neural network libraries: a model is whatever its jaxpr says.

How: from every gradient leaf one walks back through operations that only move numbers
(and through sums, if a parameter is used twice) and marks them. Evaluated in order,
a marked ``dot_general`` or look-up (``scatter-add`` into zeros) gives an
:class:`OuterProduct`, marked moves act on it, and whatever else meets one gets the
array. A leaf that does not end so is an array, as ever; the result is exact.

Scans are rebuilt so that they stack operands instead of products (``_scans.py``).
Convolutions are met before ``vmap``, where they are still plain: the jaxpr of one row
is evaluated with those that end a gradient written as products of patches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._gradients.arguments import known_as
from consensus_optax._gradients.convolution import as_product
from consensus_optax._gradients.jaxprs import (
    MOVES,
    NOTHING,
    Scope,
    ends,
    evaluate,
    is_kept,
    walk_back,
)
from consensus_optax._gradients.scans import lift, rewrite
from consensus_optax._rows.layers import LayersFirst
from consensus_optax._rows.outer_product import OuterProduct, is_outer_product

_CONVOLUTION = "conv_general_dilated"


def unfinished(
    function: Callable[..., Any], in_axes: Sequence[int | None], *args: Any
) -> tuple[Any, Any]:
    """Evaluates ``vmap(function, in_axes)(*args)`` without the rows' contractions.

    Args:
      function: of one row's arguments, to (value, gradient).
      in_axes: as in ``jax.vmap``, 0 or None for each argument.
      *args: arguments of all rows.

    Returns:
      (value, rows), rows with outer products where possible.
    """
    closed, shapes, wanted = _traced(_of_all_rows(function, in_axes), args)
    outputs = _evaluated(closed, args, wanted, _keep)
    value_tree, rows_tree = map(jax.tree.structure, shapes)
    values, rows = outputs[: value_tree.num_leaves], outputs[value_tree.num_leaves :]
    whole = lambda x: x.materialize() if is_kept(x) else x
    value = jax.tree.unflatten(value_tree, map(whole, values))
    return value, jax.tree.unflatten(rows_tree, map(_worth, rows))


def ends_of_rows(
    function: Callable[..., Any], in_axes: Sequence[int | None], *args: Any
) -> list[str]:
    """For every leaf of :func:`unfinished` rows the operations in which it ends."""
    closed, _, wanted = _traced(_of_all_rows(function, in_axes), args)
    return [" + ".join(end) for end in ends(closed.jaxpr, wanted)]


def _of_all_rows(
    function: Callable[..., Any], in_axes: Sequence[int | None]
) -> Callable[..., Any]:
    return jax.vmap(with_products(function), tuple(in_axes))


def with_products(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one row, to (value, gradient), fit to be mapped over rows.

    Convolutions that end its gradient are matrix products instead; to rounding, it is
    the same function.
    """

    @known_as(function)
    def of_row(*args: Any) -> Any:
        closed, shapes, wanted = _traced(function, args)
        ended = itertools.chain(*ends(closed.jaxpr, wanted))
        some = any(_CONVOLUTION in end for end in ended)
        outputs = _evaluated(closed, args, wanted if some else (), _rewrite)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return of_row


def _traced(function: Callable[..., Any], args: Any) -> tuple[Any, Any, Any]:
    """The jaxpr of ``function(*args) -> (value, rows)``, shapes, variables of rows."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    return closed, shapes, closed.jaxpr.outvars[len(jax.tree.leaves(shapes[0])) :]


def _evaluated(closed: Any, args: Any, wanted: Any, keep: Any) -> list[Any]:
    marked = walk_back(closed.jaxpr, wanted)
    leaves = jax.tree.leaves(args)
    return evaluate(closed.jaxpr, closed.consts, leaves, marked, keep)


def _worth(leaf: Any) -> Any:
    """An outer product, unless its factors are larger than what they multiply to."""
    if is_outer_product(leaf) and leaf.left.size + leaf.right.size >= leaf.size:
        return leaf.materialize()
    return leaf


def _keep(eqn: Any, scope: Scope) -> list[Any] | None:
    """The outputs of a marked operation if it is kept factored, else None."""
    name = eqn.primitive.name
    if name == "dot_general":
        return _product(eqn, *map(scope.number, eqn.invars))
    if name == "scatter-add" and eqn.invars[0] in scope.zeros:
        return _look_up(eqn, *map(scope.number, eqn.invars))
    if name == "scan":
        return lift(eqn, scope, _keep)
    if name == "add_any":
        return _sum(*map(scope.read, eqn.invars))
    if name in (*MOVES, "copy"):
        value = scope.read(eqn.invars[0])
        return [value] if value is NOTHING else _move(eqn, value)
    return None


def _rewrite(eqn: Any, scope: Scope) -> list[Any] | None:
    """A marked convolution as a matrix product; everything else as it stands."""
    if eqn.primitive.name == "scan":
        return rewrite(eqn, scope, _rewrite)
    if eqn.primitive.name != _CONVOLUTION:
        return None
    product = as_product(eqn, *map(scope.number, eqn.invars))
    return None if product is None else [product]


def _product(eqn: Any, lhs: Any, rhs: Any) -> list[Any] | None:
    """A contraction whose one batch axis leads: the example axis."""
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    if len(lhs_batch) != 1 or eqn.params.get("out_sharding") is not None:
        return None
    if not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        return None
    left, m = _as_factor(lhs, lhs_batch[0], lhs_sum)
    right, n = _as_factor(rhs, rhs_batch[0], rhs_sum)
    return [
        OuterProduct(
            left,
            right,
            row_shape=(*m, *n),
            dtype=eqn.outvars[0].aval.dtype,
            precision=eqn.params["precision"],
        )
    ]


def _as_factor(
    operand: Any, batch: int, summed: Sequence[int]
) -> tuple[Any, tuple[int, ...]]:
    """An operand as (B, T, M), and the axes that M stands for."""
    free = [
        axis for axis in range(operand.ndim) if axis != batch and axis not in summed
    ]
    shape = tuple(operand.shape[axis] for axis in free)
    terms = math.prod(operand.shape[axis] for axis in summed)
    moved = operand.transpose(batch, *summed, *free)
    return moved.reshape(operand.shape[batch], terms, math.prod(shape)), shape


def _look_up(eqn: Any, table: Any, indices: Any, updates: Any) -> list[Any] | None:
    """The transpose of ``table[indices]`` over whole rows: updates added into zeros.

    The left factor holds the indices; as a matrix its rows would be one-hot.
    """
    dims = eqn.params["dimension_numbers"]
    if (
        table.ndim != 3
        or tuple(dims.operand_batching_dims) != (0,)
        or tuple(dims.scatter_indices_batching_dims) != (0,)
        or tuple(dims.inserted_window_dims) != (1,)
        or tuple(dims.scatter_dims_to_operand_dims) != (1,)
        or tuple(dims.update_window_dims) != (updates.ndim - 1,)
        or updates.shape[-1] != table.shape[2]
        or not jnp.issubdtype(table.dtype, jnp.floating)
    ):
        return None
    num_rows, height, width = table.shape
    left = indices.reshape(num_rows, -1)
    if eqn.params["mode"] == lax.GatherScatterMode.CLIP:
        left = jnp.clip(left, 0, height - 1)
    right = updates.reshape(num_rows, -1, width)
    return [OuterProduct(left, right, row_shape=(height, width), dtype=table.dtype)]


def _sum(x: Any, y: Any) -> list[Any] | None:
    """Two uses of one parameter: the terms of both, if they are laid out alike."""
    if x is NOTHING or y is NOTHING:
        return [y if x is NOTHING else x]
    if isinstance(x, LayersFirst) and isinstance(y, LayersFirst):
        total = _sum(x.leaf, y.leaf)
        return total and [LayersFirst(*total)]
    if not (is_outer_product(x) and is_outer_product(y)):
        return None
    if x.right.ndim != y.right.ndim:
        return None
    layout = lambda p: (p.row_shape, p.steps, p.dtype, p.precision)
    if layout(x) != layout(y):
        return None
    x, y = x.with_dense_left(), y.with_dense_left()
    left = jnp.concatenate([x.left, y.left.astype(x.left.dtype)], -2)
    right = jnp.concatenate([x.right, y.right.astype(x.right.dtype)], -2)
    return [OuterProduct(left, right, *layout(x))]


def _move(eqn: Any, leaf: Any) -> list[Any] | None:
    """A marked operation that moves numbers without changing the example axis."""
    if not is_kept(leaf):
        return None
    params, shape = eqn.params, eqn.outvars[0].aval.shape
    if isinstance(leaf, LayersFirst):
        if eqn.primitive.name == "transpose":
            rows = leaf.transposed(params["permutation"])
            return None if rows is None else [rows]
        if eqn.primitive.name not in ("copy", "convert_element_type"):
            return None
        moved = _move(eqn, leaf.leaf)
        return moved and [LayersFirst(*moved)]
    match eqn.primitive.name:
        case "copy":
            return [leaf]
        case "convert_element_type":
            dtype = params["new_dtype"]
            return (
                [leaf.with_dtype(dtype)]
                if jnp.issubdtype(dtype, jnp.floating)
                else None
            )
        case "transpose":
            axes = params["permutation"]
            if axes[0] != 0:
                return None
            return [leaf.transposed(tuple(axis - 1 for axis in axes[1:]))]
        case "broadcast_in_dim":
            if math.prod(shape) != leaf.size or params["broadcast_dimensions"][0] != 0:
                return None
        case "reshape":
            if params["dimensions"] is not None:
                return None
    return [leaf.reshaped(shape[1:])] if shape and shape[0] == leaf.shape[0] else None
