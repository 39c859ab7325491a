"""Which outputs of a program depend on which of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend import core

from consensus_optax._gradients.jaxprs import CALLS, as_scan, inner_of

Tasks = frozenset[int]


def reached(
    jaxpr: Any, given: Sequence[Tasks], inside_calls: bool = False
) -> dict[Any, Tasks]:
    """For every variable the union of what is given for the inputs it depends on.

    Of a scan, turn by turn; through a barrier each value by itself; of any other
    operation, of calls too unless they are looked into, all outputs depend on all
    inputs.
    """
    known: dict[Any, Tasks] = dict(zip(jaxpr.invars, given, strict=True))
    for eqn in jaxpr.eqns:
        inputs = [tasks_of(var, known) for var in eqn.invars]
        if eqn.primitive.name == "scan" and any(inputs):
            outputs = _of_scan(as_scan(eqn), inputs)
        elif eqn.primitive.name == "optimization_barrier":
            outputs = inputs
        elif inside_calls and eqn.primitive.name in CALLS:
            body, _ = inner_of(eqn)
            within = reached(body, inputs, inside_calls)
            outputs = [tasks_of(var, within) for var in body.outvars]
        else:
            outputs = [Tasks().union(*inputs)] * len(eqn.outvars)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return known


def tasks_of(var: Any, known: dict[Any, Tasks]) -> Tasks:
    """The same of one variable, or of a literal, which depends on nothing."""
    if isinstance(var, core.Literal):
        return Tasks()
    return known.get(var, Tasks())


def _of_scan(scan: Any, inputs: list[Tasks]) -> list[Tasks]:
    """What a turn hands on depends on what it was handed, until nothing changes."""
    first, last = scan.num_consts, scan.num_consts + scan.num_carry
    while True:
        known = reached(scan.body, inputs)
        outputs = [tasks_of(var, known) for var in scan.body.outvars]
        carry = [
            x | y
            for x, y in zip(inputs[first:last], outputs[: scan.num_carry], strict=True)
        ]
        if carry == inputs[first:last]:
            return [*carry, *outputs[scan.num_carry :]]
        inputs = [*inputs[:first], *carry, *inputs[last:]]
