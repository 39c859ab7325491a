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
        edge = operands[1]
        zero = isinstance(edge, core.Literal) and edge.val == 0
        return operands[:1] if zero else ()
    if name in ("mul", "div"):
        pairs = zip(operands, reversed(operands), strict=True)
        found = [x for x, y in pairs if _is_number_of_each_row(y, x)]
        return found if name == "mul" else [x for x in found if x is operands[0]]
    return operands[:1] if name in (*MOVES, *CUTS, "copy", "neg") else ()


def _is_number_of_each_row(var: Any, rows: Any) -> bool:
    """Whether an operand is one number, or one for every row of the other."""
    shape, whole = var.aval.shape, rows.aval.shape
    if len(whole) < 2 or not shape:
        return len(whole) > 1
    same = len(shape) == len(whole) and shape[0] == whole[0]
    return same and math.prod(shape) == shape[0] < math.prod(whole)


def described(eqn: Any) -> str:
    """An operation at which a gradient ends, with what keeps it from being factors."""
    name = eqn.primitive.name
    if name == "dot_general":
        _, (batch, _) = eqn.params["dimension_numbers"]
        return name if batch else f"{name} without an example axis"
    if name != "scatter-add":
        return name
    dims, table = eqn.params["dimension_numbers"], eqn.invars[0].aval
    whole = tuple(dims.scatter_dims_to_operand_dims)[:1] == (1,) and table.ndim > 2
    return name if whole else f"{name} that looks up no lines of a table"
