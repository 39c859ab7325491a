"""In which operations gradients end: what is said of leaves that are no products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from consensus_optax._gradients.jaxprs import (
    CALLS,
    as_scan,
    inner_of,
    is_in,
    operands_on_the_way,
    producers_of,
)
from consensus_optax._gradients.sources import described, sources


def ends(
    jaxpr: Any, wanted: Sequence[Any], num_rows: int | None = None
) -> list[tuple[str, ...]]:
    """For every wanted variable the operations at which the walk back from it ends.

    Every name once. A variable is visited once, however many sums it is part of.
    ``num_rows``: of gradients of all rows, how many; None: of one row.
    """
    producers, stack = producers_of(jaxpr), list(wanted)
    known: dict[Any, tuple[str, ...]] = {}
    bodies: dict[int, list[tuple[str, ...]]] = {}

    def of_body(eqn: Any, body: Any) -> list[tuple[str, ...]]:
        if id(eqn) not in bodies:
            bodies[id(eqn)] = ends(body, body.outvars, num_rows)
        return bodies[id(eqn)]

    given = lambda var: not is_in(var, producers)
    found = lambda var: ("input",) if given(var) else known[var]
    while stack:
        var = stack[-1]
        if given(var) or var in known:
            stack.pop()
            continue
        eqn = producers[var]
        operands = operands_on_the_way(eqn, var)
        unknown = [x for x in operands if not given(x) and x not in known]
        stack.extend(unknown)
        if not unknown:
            names = [end for operand in operands for end in found(operand)]
            if not sources(eqn):
                own = _end(eqn, var, num_rows, of_body)
                names += [end for end in own if not (operands and end == "input")]
            known[var] = tuple(dict.fromkeys(names))
    return [found(var) for var in wanted]


def _end(eqn: Any, var: Any, num_rows: int | None, of_body: Any) -> tuple[str, ...]:
    """Where the walk back ends at an operation that is no move, or inside of it."""
    index = eqn.outvars.index(var)
    if eqn.primitive.name in CALLS:
        return of_body(eqn, inner_of(eqn)[0])[index]
    if eqn.primitive.name != "scan":
        return (described(eqn, num_rows),)
    scan = as_scan(eqn)
    carried = index < scan.num_carry
    if eqn.effects or (carried and not scan.accumulates(index)):
        return ("scan with effects" if eqn.effects else "scan",)
    inner = of_body(eqn, scan.body)[index]
    kept = [end for end in inner if not (carried and end == "input")]
    return tuple(f"{end} in scan" for end in kept or ["sum"])
