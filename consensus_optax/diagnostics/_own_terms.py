"""Terms of a loss in which no example occurs, such as a penalty on the parameters.

Their gradient is the same in every row. It is read off the program: from the value
backwards through all that is linear, down to what is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from consensus_optax._gradients.arguments import positions
from consensus_optax._gradients.dependence import Tasks, reached, tasks_of
from consensus_optax._gradients.jaxprs import CALLS, inner_of, producers_of

_PARAMS, _BATCH = 0, 1
_LINEAR = {
    *("add", "add_any", "sub", "neg", "mul", "div", "reduce_sum", "select_n"),
    *("convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "transpose"),
    *("copy", "concatenate", "slice", "pad", "cumsum", "reduce_precision", "psum"),
}


def has_own_term(fun: Callable[..., Any], call: tuple[Any, ...], options: Any) -> bool:
    """Whether the loss adds a term of the parameters alone that is not linear in them.

    (The gradient of a linear one is a constant: no penalty pulls so.)
    """
    several = lambda name, default: positions(
        name, options.get(name, default), len(call)
    )
    params, batch = several("argnums", 0), several("batch_argnums", 1)
    given = {i: call[i] for i in (*params, *batch)}

    def value(given: dict[int, Any]) -> Any:
        result = fun(*[given.get(i, argument) for i, argument in enumerate(call)])
        return result[0] if options.get("has_aux", False) else result

    closed = jax.make_jaxpr(value)(given)
    inputs = [
        Tasks({_PARAMS if i in params else _BATCH})
        for i in sorted(given)  # as a dict is flattened
        for _ in jax.tree.leaves(given[i])
    ]
    found, _ = _walked(closed.jaxpr, inputs, closed.jaxpr.outvars[:1])
    return found


def _walked(
    jaxpr: Any, given: Sequence[Tasks], wanted: Sequence[Any]
) -> tuple[bool, list[int]]:
    """Whether a term is found behind some variables, and which inputs are behind them.

    An input is behind where it is come to in a linear way.
    """
    known, producers = reached(jaxpr, given), producers_of(jaxpr)
    inputs = {var: i for i, var in enumerate(jaxpr.invars)}
    behind: list[int] = []
    waiting, seen = list(wanted), set()
    while waiting:
        var = waiting.pop()
        tasks = tasks_of(var, known)
        if _PARAMS not in tasks or var in seen:
            continue
        seen.add(var)
        if var in inputs:
            behind.append(inputs[var])
            continue
        eqn = producers[var]
        name = eqn.primitive.name
        moving = [x for x in eqn.invars if _PARAMS in tasks_of(x, known)]
        if name == "stop_gradient":
            continue
        if name in CALLS:
            inner, _ = inner_of(eqn)
            own = [tasks_of(x, known) for x in eqn.invars]
            found, inside = _walked(inner, own, [inner.outvars[eqn.outvars.index(var)]])
            if found:
                return True, []
            waiting += [eqn.invars[i] for i in inside]
        elif name in _LINEAR and _is_linear(name, eqn, moving):
            by = [tasks_of(x, known) for x in _multiplied_by(name, eqn, moving)]
            if not any(_BATCH in tasks for tasks in by):  # else each row has its own
                waiting += moving
        elif _BATCH not in tasks:
            return True, []
    return False, behind


def _multiplied_by(name: str, eqn: Any, moving: list[Any]) -> list[Any]:
    """What a linear operation multiplies or divides by."""
    return [x for x in eqn.invars if x not in moving] if name in ("mul", "div") else []


def _is_linear(name: str, eqn: Any, moving: list[Any]) -> bool:
    """Whether the result is linear in the operands that depend on parameters."""
    if name == "mul":
        return len(moving) == 1
    if name in ("div", "select_n"):  # not in what divides, or chooses
        fixed = eqn.invars[1] if name == "div" else eqn.invars[0]
        return all(var is not fixed for var in moving)
    return True
