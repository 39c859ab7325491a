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
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from consensus_optax._outer_product import OuterProduct, is_outer_product, materialize

Read = Callable[[Any], Any]

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "remat2": "jaxpr",
}
_MOVES = ("transpose", "reshape", "squeeze", "broadcast_in_dim", "convert_element_type")


def unfinished(function: Callable[..., Any], *args: Any) -> tuple[Any, Any, list[str]]:
    """Evaluates ``function(*args) -> (value, rows)`` without the rows' contractions.

    Returns:
      (value, rows, ends): rows with outer products where possible; for every leaf of
      rows, in order, the names of the operations at which the walk back ended.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    num_values = len(jax.tree.leaves(shapes[0]))
    wanted = closed.jaxpr.outvars[num_values:]
    marked = _walk_back(closed.jaxpr, wanted)
    ends = [" + ".join(_ends(closed.jaxpr, var)) for var in wanted]
    outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), marked)
    values, rows = outputs[:num_values], outputs[num_values:]
    value_tree, rows_tree = map(jax.tree.structure, shapes)
    value = jax.tree.unflatten(value_tree, [materialize(value) for value in values])
    return value, jax.tree.unflatten(rows_tree, [_worth(leaf) for leaf in rows]), ends


def _worth(leaf: Any) -> Any:
    """An outer product, unless its factors are larger than what they multiply to."""
    if is_outer_product(leaf) and leaf.left.size + leaf.right.size >= leaf.size:
        return leaf.materialize()
    return leaf


def _producers(jaxpr: Any) -> dict[Any, Any]:
    return {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}


def _inner(eqn: Any) -> Any:
    """The open jaxpr of a call that may be evaluated in place, and its constants."""
    inner = eqn.params[_CALLS[eqn.primitive.name]]
    return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())


def _walk_back(jaxpr: Any, wanted: Sequence[Any]) -> set[Any]:
    """Variables that may hold an outer product on their way to a wanted variable."""
    producers, marked, stack = _producers(jaxpr), set(), list(wanted)
    while stack:
        var = stack.pop()
        if isinstance(var, core.Literal) or var in marked or var not in producers:
            continue
        marked.add(var)
        eqn = producers[var]
        if eqn.primitive.name in (*_MOVES, "add_any", "copy"):
            stack.extend(eqn.invars)
    return marked


def _ends(jaxpr: Any, var: Any) -> list[str]:
    """Names of the operations at which the walk back from a variable ends."""
    producers = _producers(jaxpr)
    if isinstance(var, core.Literal) or var not in producers:
        return ["input"]
    eqn = producers[var]
    name = eqn.primitive.name
    if name in (*_MOVES, "copy"):
        return _ends(jaxpr, eqn.invars[0])
    if name == "add_any":
        return [end for operand in eqn.invars for end in _ends(jaxpr, operand)]
    if name in _CALLS:
        inner, _ = _inner(eqn)
        return _ends(inner, inner.outvars[eqn.outvars.index(var)])
    return [name]


def _evaluate(
    jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], marked: set[Any]
) -> list[Any]:
    """Evaluates a jaxpr; marked variables may come out as outer products."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    zeros = _zeros(jaxpr)

    def read(var: Any) -> Any:
        return var.val if isinstance(var, core.Literal) else values[var]

    def number(var: Any) -> Any:
        """A value as an array; one that was kept as a product is multiplied once."""
        if not isinstance(var, core.Literal) and is_outer_product(values[var]):
            values[var] = values[var].materialize()
        return read(var)

    for eqn in jaxpr.eqns:
        outs = None
        if any(var in marked for var in eqn.outvars):
            outs = _keep(eqn, read, number, zeros)
        if outs is None:
            outs = _evaluate_one(jaxpr, eqn, number)
        values.update(zip(eqn.outvars, outs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _evaluate_one(jaxpr: Any, eqn: Any, number: Read) -> list[Any]:
    """One equation as JAX evaluates it, source information included."""
    inputs = list(
        {var: None for var in eqn.invars if not isinstance(var, core.Literal)}
    )
    alone = jaxpr.replace(
        constvars=[],
        invars=inputs,
        outvars=eqn.outvars,
        eqns=[eqn],
        effects=eqn.effects,
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    return jax.core.eval_jaxpr(alone, (), *map(number, inputs))


def _zeros(jaxpr: Any) -> set[Any]:
    """Variables that are known to hold zeros."""
    zeros: set[Any] = set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "broadcast_in_dim":
            (operand, *_) = eqn.invars
            literal = isinstance(operand, core.Literal)
            if (operand.val == 0) if literal else (operand in zeros):
                zeros.update(eqn.outvars)
    return zeros


def _keep(eqn: Any, read: Read, number: Read, zeros: set[Any]) -> list[Any] | None:
    """The outputs of a marked operation if it is kept factored, else None."""
    name = eqn.primitive.name
    if name in _CALLS and _may_open(eqn):
        inner, consts = _inner(eqn)
        operands = [number(var) for var in eqn.invars]
        if eqn.params.get("prevent_cse"):  # recompute, as jax.checkpoint asks
            operands = list(lax.optimization_barrier(tuple(operands)))
        return _evaluate(inner, consts, operands, _walk_back(inner, inner.outvars))
    if name == "dot_general":
        return _product(eqn, *map(number, eqn.invars))
    if name == "scatter-add" and eqn.invars[0] in zeros:
        return _look_up(eqn, *map(number, eqn.invars))
    if name == "add_any":
        return _sum(*map(read, eqn.invars))
    if name in (*_MOVES, "copy") and is_outer_product(read(eqn.invars[0])):
        return _move(eqn, read(eqn.invars[0]))
    return None


def _may_open(eqn: Any) -> bool:
    """A call without shardings or donation of its own can be evaluated in place."""
    shardings = (
        *eqn.params.get("in_shardings", ()),
        *eqn.params.get("out_shardings", ()),
    )
    own = any(type(sharding).__name__ != "UnspecifiedValue" for sharding in shardings)
    return not own and not any(eqn.params.get("donated_invars", ()))


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
    if not (is_outer_product(x) and is_outer_product(y)):
        return None
    layout = lambda p: (p.row_shape, p.steps, p.dtype, p.precision)
    if layout(x) != layout(y):
        return None
    x, y = x.with_dense_left(), y.with_dense_left()
    left = jnp.concatenate([x.left, y.left.astype(x.left.dtype)], 1)
    right = jnp.concatenate([x.right, y.right.astype(x.right.dtype)], 1)
    return [OuterProduct(left, right, *layout(x))]


def _move(eqn: Any, leaf: OuterProduct) -> list[Any] | None:
    """A marked operation that moves numbers without changing the example axis."""
    params, shape = eqn.params, eqn.outvars[0].aval.shape
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
