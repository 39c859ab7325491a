"""Rows of several losses: one forward pass, and the backward pass of each loss.

The backward pass is a program in K numbers, one for each loss, and linear in them. What
depends on one of them alone, a head, is computed once, with that number 1, and is known
to be zero for all other losses; whatever joins several runs under ``jax.vmap`` over K
unit vectors. A residual of the forward pass knows nothing of losses, so a product of it
that ends a gradient has one left factor for all rows.

For that the program is written down for one row, as ``jax.vmap`` of a single one, where
every product that ends a gradient has its example axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import dtypes, lax
from jax.extend import core

from consensus_optax._gradients.contraction import keep, with_products
from consensus_optax._gradients.dependence import Tasks, reached, tasks_of
from consensus_optax._gradients.jaxprs import (
    CALLS,
    evaluate,
    evaluate_one,
    inner_of,
    is_in,
    is_kept,
    may_open,
    walk_back,
    zeros_of,
)
from consensus_optax._rows.outer_product import OuterProduct
from consensus_optax._rows.views import shared_left
from consensus_optax._typing import Array


class Part(NamedTuple):
    """What is added up to the rows of one leaf.

    Attributes:
      task: the one loss whose row this is, (1, ...); None for rows of all, (K, ...).
      rows: an array, or outer products.
    """

    task: int | None
    rows: Any


class Program(NamedTuple):
    """A backward pass of one row, in two halves.

    Attributes:
      jaxpr: the whole; its inputs are residuals and then K numbers.
      consts: its constants.
      reached: on which losses each variable depends.
      early: operations that depend on one loss, or none.
      late: operations that join several, and what follows.
      late_vars: what these compute.
      num_tasks: K.
    """

    jaxpr: Any
    consts: Any
    reached: dict[Any, Tasks]
    early: list[Any]
    late: list[Any]
    late_vars: set[Any]
    num_tasks: int

    def half(self, eqns: list[Any], **variables: Any) -> Any:
        """A jaxpr of some of the operations."""
        info = self.jaxpr.debug_info.with_unknown_names()
        return self.jaxpr.replace(eqns=eqns, debug_info=info, **variables)

    def parts(self, var: Any) -> list[Any]:
        """Variables that a gradient is the sum of, each of one half."""
        if not is_in(var, self.late_vars):
            return [var] if tasks_of(var, self.reached) else []
        eqn = next(eqn for eqn in self.late if var in eqn.outvars)
        several = {tasks_of(x, self.reached) for x in eqn.invars}
        if eqn.primitive.name != "add_any" or several == {self.reached[var]}:
            return [var]
        return [part for operand in eqn.invars for part in self.parts(operand)]

    @property
    def handed_over(self) -> list[Any]:
        """What the late half reads of the early one."""
        read = dict.fromkeys(
            var
            for eqn in self.late
            for var in eqn.invars
            if not isinstance(var, core.Literal)
        )
        return [var for var in read if var not in self.late_vars]


def parts_of_rows(
    pull: Callable[..., Any],
    cotangent: Callable[[Sequence[Any]], Any],
    ones: Sequence[Array],
    patches: bool,
) -> tuple[list[tuple[Any, list[Part]]], Any]:
    """``jax.vmap`` of a pullback over K unit vectors, as parts of every leaf.

    Args:
      pull: the pullback, as ``jax.vjp`` gives it.
      cotangent: of K numbers to what ``pull`` is applied to.
      ones: K times the number 1, in the dtypes of the losses.
      patches: whether convolutions that end gradients become products of patches, as
        is faster where many examples are mapped over.

    Returns:
      (leaves, structure), for each leaf the type of one row, (1, *shape), and parts.
    """
    program, given, structure = program_of(pull, cotangent, ones, patches)
    outs = program.jaxpr.outvars
    parts = [program.parts(var) for var in outs]
    found = _evaluated(program, given, [var for each in parts for var in each])
    queue = iter(found)
    leaves = [
        (out.aval, [next(queue) for _ in each])
        for out, each in zip(outs, parts, strict=True)
    ]
    return leaves, structure


def program_of(
    pull: Callable[..., Any],
    cotangent: Callable[[Sequence[Any]], Any],
    ones: Sequence[Array],
    patches: bool,
) -> tuple[Program, list[Array], Any]:
    """The program of one row, what it is given, and the structure of what it makes."""
    residuals, treedef = jax.tree.flatten(pull)
    apply = lambda residuals, ones: jax.tree.unflatten(treedef, residuals)(
        cotangent(ones)
    )
    closed, shapes = jax.make_jaxpr(apply, return_shape=True)(residuals, list(ones))

    def row(*given: Any) -> tuple[Any, list[Any]]:
        return (), opened(closed.jaxpr, closed.consts, given)

    given = [jnp.expand_dims(x, 0) for x in (*residuals, *ones)]
    of_rows = jax.vmap(with_products(row) if patches else row)
    whole = jax.make_jaxpr(of_rows)(*given)
    return _halved(whole, len(residuals)), given, jax.tree.structure(shapes)


def opened(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluates a jaxpr with its calls in place, and losses that were only stacked."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, core.Literal) else values[var]

    def number(var: Any) -> Any:
        value = read(var)
        return value.whole if isinstance(value, _Stacked) else value

    for eqn in jaxpr.eqns:
        name, operands = eqn.primitive.name, [read(var) for var in eqn.invars]
        if name in CALLS and may_open(eqn):
            inner, inner_consts = inner_of(eqn)
            if eqn.params.get("prevent_cse"):  # recompute, as jax.checkpoint asks
                numbers = tuple(map(number, eqn.invars))
                operands = list(lax.optimization_barrier(numbers))
            outs = opened(inner, inner_consts, operands)
        elif name == "unstack" and isinstance(operands[0], _Stacked):
            outs = operands[0].parts
        else:
            outs = evaluate_one(jaxpr, eqn, number)
            if name == "stack" and eqn.outvars[0].aval.ndim == 1:
                outs = [_Stacked(outs[0], [number(var) for var in eqn.invars])]
        values.update(zip(eqn.outvars, outs, strict=True))
    return [number(var) for var in jaxpr.outvars]


class _Stacked(NamedTuple):
    """A vector of numbers that are known one by one as well."""

    whole: Array
    parts: list[Array]


def _halved(closed: Any, num_residuals: int) -> Program:
    jaxpr, count = closed.jaxpr, len(closed.jaxpr.invars) - num_residuals
    given = [Tasks()] * num_residuals + [Tasks({task}) for task in range(count)]
    known = reached(jaxpr, given)
    early: list[Any] = []
    late: list[Any] = []
    late_vars: set[Any] = set()
    for eqn in jaxpr.eqns:
        tasks = Tasks().union(*(tasks_of(var, known) for var in eqn.invars))
        if len(tasks) > 1 or any(is_in(var, late_vars) for var in eqn.invars):
            late.append(eqn)
            late_vars.update(eqn.outvars)
        else:
            early.append(eqn)
    return Program(jaxpr, closed.consts, known, early, late, late_vars, count)


def _evaluated(program: Program, given: list[Any], wanted: list[Any]) -> list[Part]:
    """The wanted variables as parts, in their order."""
    of_one = [var for var in wanted if var not in program.late_vars]
    of_all = [var for var in wanted if var in program.late_vars]
    boundary = program.handed_over
    half = program.half(program.early, outvars=[*of_one, *boundary])
    marked = walk_back(half, of_one)
    outs = evaluate(half, program.consts, given, marked, keep)
    whole = lambda x: x.materialize() if is_kept(x) else x
    values = dict(zip(boundary, map(whole, outs[len(of_one) :]), strict=True))
    early = dict(zip(of_one, outs, strict=False))
    late = _joined(program, values, of_all) if of_all else {}

    def part(var: Any) -> Part:
        if var in late:
            return Part(None, late[var])
        (task,) = program.reached[var]
        return Part(task, early[var])

    return list(map(part, wanted))


def _joined(
    program: Program, values: dict[Any, Any], wanted: list[Any]
) -> dict[Any, Any]:
    """The late half for all losses at once, from what was handed over."""
    count = program.num_tasks
    depends = [var for var in values if tasks_of(var, program.reached)]
    moving = [var for var in depends if values[var].dtype != dtypes.float0]
    half = program.half(program.late, constvars=[], invars=list(values), outvars=wanted)
    zeros = zeros_of(program.jaxpr) & set(values)
    marked = walk_back(half, wanted)
    leaves: list[Any] = []

    def row(*given: Any) -> list[Any]:
        own = values | dict(zip(moving, given, strict=True))
        outs = evaluate(half, (), list(own.values()), marked, keep, zeros)
        leaves[:] = outs
        return jax.tree.leaves([_factors(leaf) for leaf in outs])

    def unit(var: Any) -> Array:
        (task,) = program.reached[var]
        value = values[var][None]
        edges = [(task, count - 1 - task, 0), *[(0, 0, 0)] * (value.ndim - 1)]
        return lax.pad(value, jnp.zeros((), value.dtype), edges)  # (K, 1, ...)

    closed = jax.make_jaxpr(row)(*[values[var] for var in moving])
    known = reached(closed.jaxpr, [Tasks({0})] * len(moving))
    axes = [0 if tasks_of(out, known) else None for out in closed.jaxpr.outvars]
    outs = jax.vmap(core.jaxpr_as_fun(closed), out_axes=axes)(*map(unit, moving))
    queue = zip(outs, axes, strict=True)

    def of_all() -> Array:
        out, axis = next(queue)
        return out if axis is None else out.squeeze(1)

    def rebuilt(leaf: Any) -> Any:
        if not isinstance(leaf, OuterProduct):
            return _each(of_all(), count)
        leaf = dataclasses.replace(leaf, left=of_all(), right=of_all())
        if leaf.right.shape[0] < leaf.left.shape[0]:
            leaf = shared_left(leaf)
        return dataclasses.replace(leaf, right=_each(leaf.right, count))

    return dict(zip(wanted, map(rebuilt, leaves), strict=True))


def _factors(leaf: Any) -> Any:
    whole = leaf.materialize() if is_kept(leaf) else leaf
    return (leaf.left, leaf.right) if isinstance(leaf, OuterProduct) else whole


def _each(rows: Array, count: int) -> Array:
    return jnp.broadcast_to(rows, (count, *rows.shape[1:]))
