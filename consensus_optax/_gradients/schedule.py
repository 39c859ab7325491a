"""The order in which a jaxpr is evaluated whose gradients are reduced on the way.

JAX leaves the product that ends a layer's gradient to any time after its operands are
there, and so does XLA, which may hold those of all layers. What only serves a claimed
variable is evaluated as soon as it can be, and what goes on from the cotangent waits
until that has been read. Inside of a scan's body one layer's operands are all there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from consensus_optax._gradients.claims import Claims
from consensus_optax._gradients.sources import MOVES
from consensus_optax._typing import Array


class Schedule(NamedTuple):
    """In what order to evaluate.

    Attributes:
      eqns: all equations of a jaxpr.
      latest: for every claimed product the last one of its operands to be there, on
        which other equations may wait, or None.
    """

    eqns: Sequence[Any]
    latest: dict[Any, Any]


def schedule(jaxpr: Any, claims: Claims) -> Schedule:
    """As it stands if nothing is claimed."""
    if not claims.of:
        return Schedule(jaxpr.eqns, {})
    early = _early(jaxpr, claims)
    producers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    missing = {id(eqn): _variables(eqn, producers) for eqn in jaxpr.eqns}
    waiting: dict[Any, list[Any]] = {}
    for eqn in early.values():
        for var in missing[id(eqn)]:
            waiting.setdefault(var, []).append(eqn)
    order: list[Any] = []
    ready = [eqn for eqn in early.values() if not missing[id(eqn)]]

    def run(first: Any) -> None:
        stack = [first]
        while stack:
            eqn = stack.pop()
            order.append(eqn)
            for var in eqn.outvars:
                for other in waiting.get(var, ()):
                    missing[id(other)].discard(var)
                    if not missing[id(other)]:
                        stack.append(other)

    for eqn in [*ready, *(eqn for eqn in jaxpr.eqns if id(eqn) not in early)]:
        run(eqn)
    place = {var: i for i, eqn in enumerate(order) for var in eqn.outvars}

    def latest(eqn: Any) -> Any:
        made = [x for x in _operands(eqn, producers, early) if x in place]
        return max(made, key=place.__getitem__, default=None)

    made = {var: producers[var] for var in claims.of if var in producers}
    ends = {x: eqn for x, eqn in made.items() if eqn.primitive.name in _PRODUCTS}
    return Schedule(order, {var: latest(eqn) for var, eqn in ends.items()})


def waiting(array: Array, made: Any) -> Array:
    """The array, for whatever must not begin before ``made``, a tree, is there.

    By a choice between it and zeros that nothing but the result of running the program
    shows to be always the former: XLA forgets an ``optimization_barrier`` before it
    puts operations in order, on a CPU at least.
    """
    # not of all entries in one line: an array that is cut would be gathered for it
    first = lambda x: lax.slice(x, [0] * x.ndim, [1] * x.ndim).reshape(())
    firsts = [first(x) for x in jax.tree.leaves(made) if x.size]
    bits = [lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) for x in firsts]
    odd = [each & 1 for each in bits]
    there = sum(odd[1:], odd[0]) <= len(odd)
    return jnp.where(there, array, jnp.zeros_like(array))


_PRODUCTS = ("dot_general", "scatter-add")


def _early(jaxpr: Any, claims: Claims) -> dict[int, Any]:
    """Equations that serve claimed variables alone, by their id."""
    users: dict[Any, list[Any]] = {var: [None] for var in _only(jaxpr.outvars)}
    for eqn in jaxpr.eqns:
        for var in _only(eqn.invars):
            users.setdefault(var, []).append(eqn)
    early: dict[int, Any] = {}
    for eqn in reversed(jaxpr.eqns):
        name, (out, *others) = eqn.primitive.name, eqn.outvars or [None]
        if others or out is None:
            continue
        claimed = out in claims.of and name in (*_PRODUCTS, *MOVES, "copy")
        serves = name in MOVES and all(id(x) in early for x in users.get(out, [None]))
        if claimed or serves:
            early[id(eqn)] = eqn
    return dict(reversed(early.items()))


def _operands(eqn: Any, producers: dict[Any, Any], early: dict[int, Any]) -> list[Any]:
    """What an equation and the moves ahead of it read that others may read, too."""
    found: list[Any] = []
    for var in _only(eqn.invars):
        if var in producers and id(producers[var]) in early:
            found += _operands(producers[var], producers, early)
        else:
            found.append(var)
    return found


def _variables(eqn: Any, producers: dict[Any, Any]) -> set[Any]:
    return {var for var in _only(eqn.invars) if var in producers}


def _only(those: Sequence[Any]) -> list[Any]:
    """Those that are no literals."""
    return [var for var in those if not isinstance(var, core.Literal)]
