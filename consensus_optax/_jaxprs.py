"""Evaluating a jaxpr, with the operations that end a gradient in one's own hands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core

from consensus_optax._outer_product import is_outer_product

Read = Callable[[Any], Any]

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "remat2": "jaxpr",
}
MOVES = ("transpose", "reshape", "squeeze", "broadcast_in_dim", "convert_element_type")


def walk_back(jaxpr: Any, wanted: Sequence[Any]) -> set[Any]:
    """Variables that may hold an outer product on their way to a wanted variable."""
    producers, marked, stack = _producers(jaxpr), set(), list(wanted)
    while stack:
        var = stack.pop()
        if isinstance(var, core.Literal) or var in marked or var not in producers:
            continue
        marked.add(var)
        eqn = producers[var]
        if eqn.primitive.name in (*MOVES, "add_any", "copy"):
            stack.extend(eqn.invars)
    return marked


def ends(jaxpr: Any, var: Any) -> list[str]:
    """Names of the operations at which the walk back from a variable ends."""
    producers = _producers(jaxpr)
    if isinstance(var, core.Literal) or var not in producers:
        return ["input"]
    eqn = producers[var]
    name = eqn.primitive.name
    if name in (*MOVES, "copy"):
        return ends(jaxpr, eqn.invars[0])
    if name == "add_any":
        return [end for operand in eqn.invars for end in ends(jaxpr, operand)]
    if name in CALLS:
        inner, _ = _inner(eqn)
        return ends(inner, inner.outvars[eqn.outvars.index(var)])
    return [name]


def evaluate(
    jaxpr: Any,
    consts: Sequence[Any],
    args: Sequence[Any],
    marked: set[Any],
    keep: Callable[..., list[Any] | None],
) -> list[Any]:
    """Evaluates a jaxpr; ``keep`` may do so in its own way for marked variables."""
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
            if eqn.primitive.name in CALLS and _may_open(eqn):
                outs = _open(eqn, number, keep)
            else:
                outs = keep(eqn, read, number, zeros)
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


def _open(eqn: Any, number: Read, keep: Callable[..., list[Any] | None]) -> list[Any]:
    """A call, evaluated in place."""
    inner, consts = _inner(eqn)
    operands = [number(var) for var in eqn.invars]
    if eqn.params.get("prevent_cse"):  # recompute, as jax.checkpoint asks
        operands = list(lax.optimization_barrier(tuple(operands)))
    marked = walk_back(inner, inner.outvars)
    return evaluate(inner, consts, operands, marked, keep)


def _may_open(eqn: Any) -> bool:
    """A call without shardings or donation of its own can be evaluated in place."""
    shardings = (
        *eqn.params.get("in_shardings", ()),
        *eqn.params.get("out_shardings", ()),
    )
    own = any(type(sharding).__name__ != "UnspecifiedValue" for sharding in shardings)
    return not own and not any(eqn.params.get("donated_invars", ()))


def _inner(eqn: Any) -> Any:
    """The open jaxpr of a call that may be evaluated in place, and its constants."""
    inner = eqn.params[CALLS[eqn.primitive.name]]
    return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())


def _producers(jaxpr: Any) -> dict[Any, Any]:
    return {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}


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
