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
        Others that data stop turn once, and of branches the cheapest one is taken.
    """
    total = 0
    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, [of_products(x, turns) for x in _inside(eqn)]
        if name == "dot_general":
            total += _product(eqn)
        elif name == "scan":
            total += eqn.params["length"] * inner[0]
        elif name == "while":
            loops = any(_loops(x) for x in _inside(eqn))
            total += sum(inner) * (1 if loops else turns)
        elif name == "cond":
            total += min(inner)
        else:
            total += sum(inner)
    return total


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
