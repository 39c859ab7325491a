"""Stopping a gradient before its last contraction.

The gradient of almost every large parameter ends in ``transpose o dot_general`` with
the example axis as batch axis. Its jaxpr is evaluated as it stands, except that these
last contractions are kept as the two operands they would multiply. Nothing is known of
layers or of neural network libraries: a model is whatever its jaxpr says.

How: from every gradient leaf one walks back through operations that factors go through
too and marks them: moves, cuts, numbers to multiply by, sums (``sources.py``, and
``moves.py`` for how). Evaluated in order, a marked ``dot_general`` or look-up
(``scatter-add`` into zeros) gives an :class:`OuterProduct`, what is marked acts on it,
and whatever else meets one gets the array. A leaf that does not end so is an array, as
ever; the result is exact.

Scans are rebuilt so that they stack operands instead of products (``scans.py``).
Convolutions are met before ``vmap``, where they are still plain: the jaxpr of one row
is evaluated with those that end a gradient written as products of patches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from consensus_optax._gradients.claims import (
    NOBODY,
    Claim,
    Claims,
    Reduce,
    Reduced,
    once,
)
from consensus_optax._gradients.constraints import RowsAxis, moved_to_rows
from consensus_optax._gradients.convolution import as_product
from consensus_optax._gradients.ends import ends
from consensus_optax._gradients.jaxprs import (
    NOTHING,
    Keep,
    Scope,
    evaluate,
    is_kept,
    walk_back,
)
from consensus_optax._gradients.moves import (
    cut_apart,
    moved,
    put_together,
    scaled,
    summed_up,
    total,
    total_with_shared,
    weighed,
)
from consensus_optax._gradients.names import known_as
from consensus_optax._gradients.products import first_lines, look_up, product
from consensus_optax._gradients.scans import lift, rewrite
from consensus_optax._gradients.sources import CUTS, MOVES, SCALINGS, pads_zeros
from consensus_optax._gradients.untyped import untyped
from consensus_optax._rows.explicit import explicit_again
from consensus_optax._rows.layers import placed
from consensus_optax._rows.outer_product import is_outer_product

_CONVOLUTION = "conv_general_dilated"
_UNKNOWN = RowsAxis()


def unfinished(
    function: Callable[..., Any],
    in_axes: Sequence[int | None],
    *args: Any,
    rows_axis: RowsAxis = _UNKNOWN,
) -> tuple[Any, Any]:
    """Evaluates ``vmap(function, in_axes)(*args)`` without the rows' contractions.

    Args:
      function: of one row's arguments, to (value, gradient).
      in_axes: as in ``jax.vmap``, 0 or None for each argument.
      *args: arguments of all rows.
      rows_axis: what is known of the axis of rows on a mesh.

    Returns:
      (value, rows), rows with outer products where possible.
    """
    traced = _of_all_rows(function, in_axes, rows_axis, args)
    value, rows = _value_and_leaves(traced, args, NOBODY)
    _, (_, shapes), _ = traced
    return value, jax.tree.unflatten(jax.tree.structure(shapes), map(worth, rows))


def reduced(
    function: Callable[..., Any],
    in_axes: Sequence[int | None],
    args: Sequence[Any],
    reduce: Reduce,
    likes: Sequence[Any] | None = None,
    rows_axis: RowsAxis = _UNKNOWN,
) -> tuple[Any, list[Any]]:
    """The same with leaves reduced inside of scans, where these stack them.

    Args:
      function: see :func:`unfinished`; so is ``in_axes``.
      in_axes: for each argument 0 or None.
      args: arguments of all rows.
      reduce: (claim, rows) to what is made of the rows of a leaf, or of one layer.
      likes: for every leaf what its claim has, laid out as its parameter.
      rows_axis: see :func:`unfinished`.

    Returns:
      (value, leaves): what was reduced, else outer products, whatever their size, or
      arrays.
    """
    traced = _of_all_rows(function, in_axes, rows_axis, args)
    closed, _, wanted = traced
    given = [None] * len(wanted) if likes is None else likes
    of = {
        var: Claim(leaf, var.aval.dtype, 0, like, tuple(range(var.aval.ndim - 1)))
        for leaf, (var, like) in enumerate(zip(wanted, given, strict=True))
        if once(var, wanted)
    }
    is_float = lambda x: (
        not isinstance(x, core.Literal) and jnp.issubdtype(x.aval.dtype, jnp.inexact)
    )
    values = list(filter(is_float, closed.jaxpr.outvars[: -len(wanted) or None]))
    return _value_and_leaves(traced, args, Claims(of, reduce, values=values))


def _value_and_leaves(traced: Any, args: Any, claims: Claims) -> tuple[Any, list[Any]]:
    """What was traced, evaluated: the value, and leaves as they are kept."""
    closed, shapes, wanted = traced
    outputs = _evaluated(closed, args, wanted, keep, claims)
    value_tree = jax.tree.structure(shapes[0])
    values, rows = outputs[: value_tree.num_leaves], outputs[value_tree.num_leaves :]
    rows = [
        placed(leaf, var.aval.sharding.spec)
        for leaf, var in zip(rows, wanted, strict=True)
    ]
    whole = lambda x: x.materialize() if is_kept(x) else x
    return jax.tree.unflatten(value_tree, map(whole, values)), rows


def ends_of_rows(
    function: Callable[..., Any],
    in_axes: Sequence[int | None],
    *args: Any,
    rows_axis: RowsAxis = _UNKNOWN,
) -> list[str]:
    """For every leaf of :func:`unfinished` rows the operations in which it ends.

    Where these make products and the leaf is none, with the reason.
    """
    closed, _, wanted = _of_all_rows(function, in_axes, rows_axis, args)
    outputs = _evaluated(closed, args, wanted, keep)
    leaves = outputs[len(outputs) - len(wanted) :]
    found = ends(closed.jaxpr, wanted, wanted[0].aval.shape[0] if wanted else None)
    pairs = zip(found, leaves, strict=True)
    return [" + ".join(end) + _why(end, leaf) for end, leaf in pairs]


def _why(end: tuple[str, ...], leaf: Any) -> str:
    """Why a leaf that ends in products may be an array."""
    if is_outer_product(leaf):
        return "" if is_outer_product(worth(leaf)) else f", which is {_NO_LARGER}"
    products = ("dot_general", "scatter-add")
    of_products = [name.split()[0] in products for name in end]
    if not any(name.partition(" in scan")[0] in products for name in end):
        return ""  # or the name says why
    if not all(of_products):
        return ", a sum of which not all are products"
    if any("in scan" in name for name in end):
        return f", which is {_NO_LARGER}, or is added to what is not zero"
    return ", which is read as an array before, or of terms that are laid out otherwise"


_NO_LARGER = "no larger multiplied out"


def of_all_rows(
    function: Callable[..., Any],
    in_axes: Sequence[int | None],
    rows_axis: RowsAxis = _UNKNOWN,
) -> Callable[..., Any]:
    """The function of all rows, every contraction done."""
    mapped = with_products(function, rows_axis)
    return jax.vmap(mapped, tuple(in_axes), spmd_axis_name=rows_axis.names or None)


def with_products(
    function: Callable[..., Any], rows_axis: RowsAxis = _UNKNOWN
) -> Callable[..., Any]:
    """A function of one row, to (value, gradient), fit to be mapped over rows.

    Convolutions that end its gradient are matrix products instead; to rounding, it is
    the same function.
    """

    @known_as(function)
    def of_row(*args: Any) -> Any:
        closed, shapes, wanted = _traced(function, args)
        if rows_axis.look is not None:
            rows_axis.look(closed, args)
        closed = closed.replace(jaxpr=moved_to_rows(closed.jaxpr, rows_axis))
        ended = itertools.chain(*ends(closed.jaxpr, wanted))
        some = any(_CONVOLUTION in end for end in ended)
        outputs = _evaluated(closed, args, wanted if some else (), _rewrite)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return of_row


def _of_all_rows(
    function: Callable[..., Any],
    in_axes: Sequence[int | None],
    rows_axis: RowsAxis,
    args: Any,
) -> tuple[Any, Any, Any]:
    """What is evaluated for all rows, of a loss that is traced on explicit axes.

    If there are any: the types of rows then say nothing of them any more.
    """
    mapped, explicit = of_all_rows(function, in_axes, rows_axis), rows_axis.explicit
    if not explicit.axes:
        return _traced(mapped, args)
    again = lambda *args: explicit_again(mapped, args, explicit)
    return _traced(again, args, untyped)


def _traced(
    function: Callable[..., Any], args: Any, change: Callable[[Any], Any] | None = None
) -> tuple[Any, Any, Any]:
    """The jaxpr of ``function(*args) -> (value, rows)``, shapes, variables of rows."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    closed = closed if change is None else change(closed)
    return closed, shapes, closed.jaxpr.outvars[len(jax.tree.leaves(shapes[0])) :]


def _evaluated(
    closed: Any, args: Any, wanted: Any, keep: Keep, claims: Claims = NOBODY
) -> list[Any]:
    marked = walk_back(closed.jaxpr, wanted)
    leaves, given = jax.tree.leaves(args), (closed.jaxpr, closed.consts)
    return evaluate(*given, leaves, marked, keep, claims=claims)


def worth(leaf: Any) -> Any:
    """An outer product, unless its factors are larger than what they multiply to."""
    if is_outer_product(leaf) and sum(x.size for x in leaf.held) >= leaf.size:
        return leaf.materialize()
    return leaf


def keep(eqn: Any, scope: Scope) -> list[Any] | None:
    """The outputs of a marked operation if it is kept factored, else None."""
    name = eqn.primitive.name
    if name == "dot_general":
        return product(eqn, *map(scope.number, eqn.invars))
    if name == "scatter-add" and eqn.invars[0] in scope.zeros:
        return look_up(eqn, *map(scope.number, eqn.invars))
    if name == "scan":
        return lift(eqn, scope, keep)
    values = [scope.read(var) for var in eqn.invars]
    if isinstance(values[0], Reduced):
        return [values[0].moved(eqn)]
    if name == "add_any":
        return total(*values) or total_with_shared(eqn, scope)
    if name == "concatenate":
        return put_together(eqn, values)
    if name in SCALINGS:
        return scaled(eqn, values) or (weighed(eqn, scope) if name == "mul" else None)
    if name == "reduce_sum":
        return summed_up(eqn, values[0])
    if name == "pad" and not pads_zeros(eqn):
        return None
    if name == "pad" and not (is_kept(values[0]) or isinstance(values[0], Reduced)):
        return first_lines(eqn, scope.number(eqn.invars[0]))
    if name in CUTS:
        return cut_apart(eqn, values[0])
    if name in (*MOVES, "copy"):
        return values if values[0] is NOTHING else moved(eqn, values[0])
    return None


def _rewrite(eqn: Any, scope: Scope) -> list[Any] | None:
    """A marked convolution as a matrix product; everything else as it stands."""
    if eqn.primitive.name == "scan":
        return rewrite(eqn, scope, _rewrite)
    if eqn.primitive.name != _CONVOLUTION:
        return None
    product = as_product(eqn, *map(scope.number, eqn.invars))
    return None if product is None else [product]
