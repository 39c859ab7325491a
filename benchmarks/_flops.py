"""Operations of matrix products in a traced program, loops as often as they turn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any


def of_products(jaxpr: Any, turns: int) -> int:
    """Multiplications and additions of all products.

    Args:
      jaxpr: a program.
      turns: of a loop that may stop early, and holds none itself: as often as it may.
        Others that data stop turn once, and of branches the cheapest one is taken;
        where only one holds loops, a pass that the first turn of a loop makes, once.
    """
    return sum(_counted(jaxpr, turns))


def _counted(jaxpr: Any, turns: int) -> tuple[int, int]:
    """Operations of every turn, and of the first one alone, if this is a loop's."""
    total = once = 0
    for eqn in jaxpr.eqns:
        name, programs = eqn.primitive.name, list(_inside(eqn))
        pairs = [_counted(x, turns) for x in programs]
        inner = [sum(pair) for pair in pairs]
        if name == "dot_general":
            total += _product(eqn)
        elif name == "scan":
            total += eqn.params["length"] * pairs[0][0] + pairs[0][1]
        elif name == "while":
            total += sum(inner) * (1 if any(map(_loops, programs)) else turns)
        elif name == "cond":
            passes = [x for x in programs if _loops(x)]
            total += min(inner)
            once += max(inner) if len(passes) == 1 and not min(inner) else 0
        elif name == "shard_map":  # of one device
            mesh, axes = eqn.params["mesh"], eqn.params["newly_manual_axes"]
            total += math.prod(mesh.shape[x] for x in axes) * sum(inner)
        else:
            total += sum(pair[0] for pair in pairs)
            once += sum(pair[1] for pair in pairs)
    return total, once


def _product(eqn: Any) -> int:
    (summed, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2 * eqn.outvars[0].aval.size * math.prod(shape[axis] for axis in summed)


def _inside(eqn: Any) -> Iterator[Any]:
    """The programs that an operation runs."""
    for param in eqn.params.values():
        for each in param if isinstance(param, tuple | list) else (param,):
            inner = getattr(each, "jaxpr", each)
            if hasattr(inner, "eqns"):
                yield inner


def _loops(jaxpr: Any) -> bool:
    names = [eqn.primitive.name for eqn in jaxpr.eqns]
    inner = (_loops(x) for eqn in jaxpr.eqns for x in _inside(eqn))
    return "scan" in names or "while" in names or any(inner)
