"""Evaluating a jaxpr, with the operations that end a gradient in one's own hands."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
from jax import dtypes, lax
from jax.extend import core

from consensus_optax._gradients.claims import NOBODY, Claims, Reduced
from consensus_optax._gradients.schedule import schedule, waiting
from consensus_optax._gradients.shared import shared_arrays
from consensus_optax._gradients.sources import PLACES, before_sum, sources
from consensus_optax._rows.layers import LayersFirst, placed
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rows.weighed import Weighed

Read = Callable[[Any], Any]

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "remat2": "jaxpr",
}
NOTHING = object()  # a sum to which nothing has been added yet


class Scope(NamedTuple):
    """What is known where an equation is evaluated.

    Attributes:
      read: a variable's value, as it was kept.
      number: the same as an array.
      zeros: variables that are known to hold zeros.
      marked: variables that may be kept as products.
      claims: on those that may be reduced.
      shared: variables that repeat another one for every row.
    """

    read: Read
    number: Read
    zeros: set[Any]
    marked: set[Any]
    claims: Claims
    shared: dict[Any, tuple[Any, int]]


Keep = Callable[[Any, Scope], list[Any] | None]


class Scan(NamedTuple):
    """A scan, by what holds in every version of JAX.

    Attributes:
      body: jaxpr of one turn, (consts, carry, slices) to (carry, slices).
      consts: its constants.
      num_consts: how many operands are the same in every turn.
      num_carry: how many are handed on.
      options: length, order and unrolling.
    """

    body: Any
    consts: Any
    num_consts: int
    num_carry: int
    options: dict[str, Any]

    def accumulates(self, index: int) -> bool:
        """Whether output ``index`` is a carry that is only ever added to.

        On its way its axes may change places, if they end in their own.
        """
        var = self.body.invars[self.num_consts + index]
        axes, num_added = list(range(var.aval.ndim)), 0
        while users := [eqn for eqn in self.body.eqns if var in eqn.invars]:
            eqn = users[0]
            if len(users) > 1 or any(out is var for out in self.body.outvars):
                return False
            if eqn.primitive.name == "transpose":
                axes = [axes[axis] for axis in eqn.params["permutation"]]
            elif eqn.primitive.name == "add_any" and eqn.invars.count(var) == 1:
                num_added += 1
            elif eqn.primitive.name not in PLACES:
                return False
            (var,) = eqn.outvars
        places = [i for i, out in enumerate(self.body.outvars) if out is var]
        return num_added > 0 and places == [index] and axes == sorted(axes)


def as_scan(eqn: Any) -> Scan:
    """The parts of a scan, told apart by their axes: slices have one less."""
    body, consts = _parts(eqn.params["jaxpr"])
    names = ("length", "reverse", "unroll")
    same = lambda outer, inner: sum(
        x.aval.ndim == y.aval.ndim for x, y in zip(outer, inner, strict=True)
    )
    num_carry = same(eqn.outvars, body.outvars)
    num_consts = same(eqn.invars, body.invars) - num_carry
    options = {name: eqn.params[name] for name in names}
    return Scan(body, consts, num_consts, num_carry, options)


def is_kept(value: Any) -> bool:
    """Whether a value has not been multiplied out."""
    return is_outer_product(value) or isinstance(value, LayersFirst)


def walk_back(jaxpr: Any, wanted: Sequence[Any]) -> set[Any]:
    """Variables that may hold an outer product on their way to a wanted variable."""
    producers, marked, stack = producers_of(jaxpr), set(), list(wanted)
    while stack:
        var = stack.pop()
        if isinstance(var, core.Literal) or var in marked:
            continue
        marked.add(var)
        if var not in producers:
            continue
        eqn = producers[var]
        stack.extend(operands_on_the_way(eqn, var) or before_sum(eqn, producers))
    return marked


def operands_on_the_way(eqn: Any, var: Any) -> Sequence[Any]:
    """Where the walk back goes on from an operation's output, through a call too."""
    if eqn.primitive.name not in CALLS or not may_open(eqn):
        return sources(eqn)
    inner, _ = inner_of(eqn)
    reached = walk_back(inner, [inner.outvars[eqn.outvars.index(var)]])
    pairs = zip(eqn.invars, inner.invars, strict=True)
    return [given for given, own in pairs if own in reached]


def evaluate(
    jaxpr: Any,
    consts: Sequence[Any],
    args: Sequence[Any],
    marked: set[Any],
    keep: Keep,
    zeros: set[Any] | None = None,
    claims: Claims = NOBODY,
) -> list[Any]:
    """Evaluates a jaxpr; ``keep`` may do so in its own way for marked variables.

    ``zeros``: which of its inputs are known to hold zeros; ``claims``: on its outputs.
    """
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, core.Literal) else values[var]

    def number(var: Any) -> Any:
        """A value as an array; one that was kept as a product is multiplied once."""
        value = read(var)
        if is_kept(value) or isinstance(value, Weighed):
            values[var] = placed(value, var.aval.sharding.spec).materialize()
        return read(var)

    claims = claims.handed_back(jaxpr)
    known = zeros_of(jaxpr, zeros or ())
    scope = Scope(read, number, known, marked, claims, shared_arrays(jaxpr))
    plan = schedule(jaxpr, claims)
    for eqn in plan.eqns:
        outs = None
        if any(var in marked for var in eqn.outvars):
            if eqn.primitive.name in CALLS and may_open(eqn):
                outs = _open(eqn, scope, keep)
            else:
                with eqn.ctx.manager:  # the mesh of its place in the program
                    outs = keep(eqn, scope)
        if outs is None:
            outs = evaluate_one(jaxpr, eqn, number)
        values.update(zip(eqn.outvars, outs, strict=True))
        for var in plan.latest.keys() & set(eqn.outvars):
            made, operand = claims.settled(var, values[var]), plan.latest[var]
            values[var] = made
            waits = claims.waits and isinstance(made, Reduced) and operand is not None
            if waits and not is_kept(values[operand]):
                early = [values[x] for x in claims.values if x in values]
                values[operand] = waiting(values[operand], (made, early))
    given = lambda var: (number if isinstance(read(var), Weighed) else read)(var)
    return list(map(given, jaxpr.outvars))


def evaluate_one(jaxpr: Any, eqn: Any, number: Read) -> list[Any]:
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


def _open(eqn: Any, scope: Scope, keep: Keep) -> list[Any]:
    """A call, evaluated in place."""
    inner, consts = inner_of(eqn)
    operands = [scope.read(var) for var in eqn.invars]
    if eqn.params.get("prevent_cse"):  # recompute, as jax.checkpoint asks
        operands = list(lax.optimization_barrier(tuple(operands)))
    outs = zip(eqn.outvars, inner.outvars, strict=True)
    marked = walk_back(inner, [var for out, var in outs if out in scope.marked])
    pairs = zip(eqn.invars, inner.invars, strict=True)
    zeros = {var for given, var in pairs if is_in(given, scope.zeros)}
    claims = scope.claims.within(eqn.outvars, inner.outvars)
    return evaluate(inner, consts, operands, marked, keep, zeros, claims)


def may_open(eqn: Any) -> bool:
    """A call without shardings or donation of its own can be evaluated in place."""
    shardings = (
        *eqn.params.get("in_shardings", ()),
        *eqn.params.get("out_shardings", ()),
    )
    own = any(type(sharding).__name__ != "UnspecifiedValue" for sharding in shardings)
    return not own and not any(eqn.params.get("donated_invars", ()))


def inner_of(eqn: Any) -> Any:
    """The open jaxpr of a call that may be evaluated in place, and its constants."""
    return _parts(eqn.params[CALLS[eqn.primitive.name]])


def _parts(jaxpr: Any) -> Any:
    """The open jaxpr of one that may be closed, and its constants."""
    return (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "consts") else (jaxpr, ())


def producers_of(jaxpr: Any) -> dict[Any, Any]:
    return {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}


def is_in(var: Any, those: Collection[Any]) -> bool:
    """Whether a variable, which may be a literal, is among others."""
    return not isinstance(var, core.Literal) and var in those


def zeros_of(jaxpr: Any, zeros: Collection[Any] = ()) -> set[Any]:
    """Variables that are known to hold zeros, given those of the inputs that do."""
    zeros = set(zeros)
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "broadcast_in_dim":
            (operand, *_) = eqn.invars
            if _is_zero(operand) or is_in(operand, zeros):
                zeros.update(eqn.outvars)
        elif eqn.primitive.name in PLACES and is_in(eqn.invars[0], zeros):
            zeros.update(eqn.outvars)
    return zeros


def _is_zero(operand: Any) -> bool:
    """Whether this is a literal 0; a float0 is no number and compares to none."""
    if not isinstance(operand, core.Literal):
        return False
    is_number = getattr(operand.val, "dtype", None) != dtypes.float0
    return is_number and bool(operand.val == 0)
