"""Products that end gradients inside ``lax.scan``, lifted out of it.

The backward pass of a scan is a scan. A kernel of its own for every turn (scan over
layers) has its gradients stacked by it; a kernel shared by all turns (scan over time)
has them added up in a carry that starts from zeros. The scan is rebuilt so that it
stacks the two factors in place of their product: of the first kind rows with an axis of
layers, of the second rows with more terms. Its other outputs stay as they are, and
nothing is computed twice.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from consensus_optax._jaxprs import (
    NOTHING,
    Keep,
    Scan,
    Scope,
    as_scan,
    evaluate,
    is_in,
    is_kept,
    walk_back,
)
from consensus_optax._layers import LayersFirst, joined_layers, joined_terms
from consensus_optax._outer_product import is_outer_product


def lift(eqn: Any, scope: Scope, keep: Keep) -> list[Any] | None:
    """The outputs of a scan, those marked as products where possible; None if none is.

    Products are lifted only where their factors, of all turns, are smaller than what
    they multiply to.
    """
    scan = as_scan(eqn)
    length, num_carry = scan.options["length"], scan.num_carry
    if eqn.effects or scan.body.effects or not length:
        return None

    def may_be_lifted(index: int) -> bool:
        if eqn.outvars[index] not in scope.marked:
            return False
        start = eqn.invars[scan.num_consts + index] if index < num_carry else None
        known = start is None or is_in(start, scope.zeros)
        return known and (start is None or scan.accumulates(index))

    candidates = [i for i in range(len(eqn.outvars)) if may_be_lifted(i)]
    if not candidates:
        return None
    operands = [scope.number(var) for var in eqn.invars]
    given = operands[: scan.num_consts]
    carry, slices = _cut(operands[scan.num_consts :], num_carry)
    first = lambda: _turn(scan, given, carry, [x[0] for x in slices], candidates, keep)
    shapes = jax.eval_shape(first)
    lifted = [
        i
        for i in candidates
        if is_outer_product(shapes[i])
        and _is_worth(shapes[i], length, joins=i < num_carry)
    ]
    if not lifted:
        return None
    stay = [i for i in range(num_carry) if i not in lifted]

    def turn(kept: list[Any], now: list[Any]) -> tuple[list[Any], list[Any]]:
        whole = list(carry)
        for i, value in zip(stay, kept, strict=True):
            whole[i] = value
        outs = _turn(scan, given, whole, now, lifted, keep)
        stacked = [out for i, out in enumerate(outs) if i not in stay]
        return [outs[i] for i in stay], stacked

    start = [carry[i] for i in stay]
    final, stacked = lax.scan(turn, start, list(slices), **scan.options)
    ends, rest = iter(final), iter(stacked)
    outs = [next(ends if i in stay else rest) for i in range(len(eqn.outvars))]
    for i in lifted:
        join = joined_terms if i < num_carry else _layers_first
        outs[i] = join(outs[i])
    return outs


def _turn(
    scan: Scan,
    given: list[Any],
    carry: list[Any],
    slices: list[Any],
    lifted: list[int],
    keep: Keep,
) -> list[Any]:
    """One turn, with the outputs ``lifted`` as products of this turn where possible."""
    carry = [NOTHING if i in lifted else x for i, x in enumerate(carry)]
    marked = walk_back(scan.body, [scan.body.outvars[i] for i in lifted])
    args = [*given, *carry, *slices]
    outs = evaluate(scan.body, scan.consts, args, marked, keep)
    whole = lambda out: out.materialize() if is_kept(out) else out
    return [out if i in lifted else whole(out) for i, out in enumerate(outs)]


def _layers_first(stacked: Any) -> LayersFirst:
    return LayersFirst(joined_layers(stacked))


def _is_worth(leaf: Any, length: int, joins: bool) -> bool:
    """Whether factors of all turns are smaller than what they multiply to."""
    if leaf.is_look_up and not joins:
        return False
    factors = leaf.left.size + leaf.right.size
    return factors * (length if joins else 1) < leaf.size


def _cut(values: list[Any], at: int) -> tuple[list[Any], list[Any]]:
    return values[:at], values[at:]
