"""Operations that a gradient's factors go through: from where, and which there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jax.extend import core

# Which change no number, but what JAX knows of the devices that hold it.
PLACES = ("pvary", "sharding_constraint", "reshard")
MOVES = (
    *("transpose", "reshape", "squeeze", "broadcast_in_dim", "convert_element_type"),
    *PLACES,
)
CUTS = ("slice", "split", "pad", "rev")
SCALINGS = ("neg", "mul", "div")


def sources(eqn: Any) -> Sequence[Any]:
    """The operands by which the walk back from an operation's outputs goes on."""
    name, operands = eqn.primitive.name, eqn.invars
    if name in ("add_any", "concatenate"):
        return operands
    if name == "pad":
        return operands[:1] if pads_zeros(eqn) else ()
    if name in ("mul", "div"):
        pairs = zip(operands, reversed(operands), strict=True)
        found = [x for x, y in pairs if _scales(y, x)]
        return found if name == "mul" else [x for x in found if x is operands[0]]
    return operands[:1] if name in (*MOVES, *CUTS, "copy", "neg") else ()


def pads_zeros(eqn: Any) -> bool:
    """Whether what a pad puts around an array is known to be zero."""
    edge = eqn.invars[1]
    return isinstance(edge, core.Literal) and edge.val == 0


def _scales(var: Any, rows: Any) -> bool:
    """Whether an operand is a number, or one for each row, or for all along one axis.

    Or for each place of one axis of each row: what one factor can be multiplied by.
    """
    shape, whole = var.aval.shape, rows.aval.shape
    if len(whole) < 2 or not shape:
        return len(whole) > 1
    if len(shape) != len(whole) or shape[0] not in (1, whole[0]):
        return False
    along = [axis for axis in range(1, len(shape)) if shape[axis] > 1]
    return len(along) < 2 and math.prod(shape) < math.prod(whole)


def before_sum(eqn: Any, producers: dict[Any, Any]) -> Sequence[Any]:
    """What a sum of rows times one array goes back to: that product, and the rows."""
    if eqn.primitive.name != "reduce_sum" or eqn.invars[0] not in producers:
        return ()
    operand = eqn.invars[0]
    if operand.aval.size == eqn.outvars[0].aval.size:  # over axes of length 1
        return (operand,)
    product = producers[operand]
    if product.primitive.name != "mul":
        return ()
    made = lambda var: None if isinstance(var, core.Literal) else producers.get(var)
    for rows, other in (product.invars, product.invars[::-1]):
        if _repeats(made(other)) and not _repeats(made(rows)):
            return (operand, rows)
    return ()


def _repeats(eqn: Any) -> bool:
    """Whether this gives an array a leading axis of rows."""
    if eqn is None or eqn.primitive.name != "broadcast_in_dim":
        return False
    (out,), (array, *_) = eqn.outvars, eqn.invars
    kept = tuple(eqn.params["broadcast_dimensions"])
    ranks = len(array.aval.shape), len(out.aval.shape)
    return ranks[0] + 1 == ranks[1] and kept == tuple(range(1, ranks[1]))


def described(eqn: Any, num_rows: int | None) -> str:
    """An operation at which a gradient ends, with what keeps it from being factors."""
    name = eqn.primitive.name
    if name == "dot_general":
        _, (batch, _) = eqn.params["dimension_numbers"]
        first = [eqn.invars[0].aval.shape[axis] for axis in batch[:1]]
        return name if first == [num_rows] else f"{name} without an example axis"
    if name != "scatter-add":
        return name
    dims, table = eqn.params["dimension_numbers"], eqn.invars[0].aval
    whole = tuple(dims.scatter_dims_to_operand_dims)[:1] == (1,) and table.ndim > 2
    return name if whole else f"{name} that looks up no lines of a table"
