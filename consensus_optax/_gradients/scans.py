"""Products that end gradients inside ``lax.scan``, lifted out of it.

The backward pass of a scan is a scan. A kernel of its own for every turn (scan over
layers) has its gradients stacked by it; a kernel shared by all turns (scan over time)
has them added up in a carry that starts from zeros. The scan is rebuilt so that it
stacks the two factors in place of their product: of the first kind rows with an axis of
layers, of the second rows with more terms. Its other outputs stay as they are, and
nothing is computed twice. What is claimed is reduced in its body (``claims.py``).
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from consensus_optax._gradients.claims import NOBODY, Claims, Reduced, once
from consensus_optax._gradients.jaxprs import (
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
from consensus_optax._rows.addition import one_product
from consensus_optax._rows.layers import LayersFirst, joined_layers, joined_terms
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rows.sums import SumOfProducts


def lift(eqn: Any, scope: Scope, keep: Keep) -> list[Any] | None:
    """The outputs of a scan, those marked as products where possible; None if none is.

    Products are lifted only where their factors, of all turns, are smaller than what
    they multiply to.
    """
    scan = as_scan(eqn)
    length, num_carry = scan.options["length"], scan.num_carry

    def may_be_lifted(index: int) -> bool:
        if eqn.outvars[index] not in scope.marked:
            return False
        if index >= num_carry:
            return True
        start = eqn.invars[scan.num_consts + index]
        return is_in(start, scope.zeros) and scan.accumulates(index)

    candidates = [i for i in range(len(eqn.outvars)) if may_be_lifted(i)]
    if eqn.effects or not length or not candidates:
        return None
    given, carry, slices = _operands(eqn, scan, scope)
    same = zip(eqn.invars[: scan.num_consts], scan.body.invars, strict=False)
    zeros = {var for outer, var in same if is_in(outer, scope.zeros)}

    stacked_by = scope.claims.of
    claimed = {
        i: stacked_by[eqn.outvars[i]]
        for i in candidates
        if i >= num_carry
        and eqn.outvars[i] in stacked_by
        and stacked_by[eqn.outvars[i]].axis
        and once(scan.body.outvars[i], scan.body.outvars)
    }
    likes = {i: claim.like for i, claim in claimed.items()}  # (length, ...)

    def turn(
        carry: list[Any], slices: list[Any], likes: dict[int, Any], lifted: list[int]
    ) -> list[Any]:
        carry = [NOTHING if i in lifted else x for i, x in enumerate(carry)]
        of = {
            scan.body.outvars[i]: claim.of_turn(likes[i])
            for i, claim in claimed.items()
        }
        claims = scope.claims._replace(of=of, waits=False)
        return _turn(scan, [*given, *carry, *slices], lifted, keep, zeros, claims)

    one = lambda tree: jax.tree.map(lambda x: x[0], tree)
    shapes = jax.eval_shape(lambda: turn(carry, one(slices), one(likes), candidates))
    lifted = [
        i
        for i in candidates
        if isinstance(shapes[i], Reduced)
        or (
            is_outer_product(shapes[i])
            and _is_worth(shapes[i], length, joins=i < num_carry)
        )
    ]
    if not lifted:
        return None
    stay = [i for i in range(num_carry) if i not in lifted]

    def lifting(kept: list[Any], xs: tuple[Any, Any]) -> tuple[list[Any], list[Any]]:
        whole = dict(zip(stay, kept, strict=True))
        slices, likes = xs
        carry = [whole.get(i) for i in range(num_carry)]
        outs = turn(carry, slices, likes, lifted)
        stacked = [out for i, out in enumerate(outs) if i not in stay]
        return [outs[i] for i in stay], stacked

    xs = slices, likes
    final, stacked = lax.scan(lifting, [carry[i] for i in stay], xs, **scan.options)
    ends, rest = iter(final), iter(stacked)
    outs = [next(ends if i in stay else rest) for i in range(len(eqn.outvars))]
    for i in lifted:
        if isinstance(outs[i], Reduced):
            outs[i] = outs[i].stacked()
            continue
        layers = i >= num_carry
        join = (lambda x: LayersFirst(joined_layers(x))) if layers else joined_terms
        outs[i] = join(outs[i])
    return outs


def rewrite(eqn: Any, scope: Scope, keep: Keep) -> list[Any] | None:
    """The same scan, with what ``keep`` makes of operations that end marked outputs."""
    if eqn.effects:
        return None
    scan = as_scan(eqn)
    given, start, xs = _operands(eqn, scan, scope)
    marked = [i for i, var in enumerate(eqn.outvars) if var in scope.marked]

    def turn(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = _turn(scan, [*given, *carry, *slices], marked, keep, set())
        return outs[: scan.num_carry], outs[scan.num_carry :]

    final, stacked = lax.scan(turn, start, xs, **scan.options)
    return [*final, *stacked]


def _operands(eqn: Any, scan: Scan, scope: Scope) -> tuple[list[Any], ...]:
    """What is the same in every turn, what the first one is handed, what is sliced."""
    operands = [scope.number(var) for var in eqn.invars]
    first, last = scan.num_consts, scan.num_consts + scan.num_carry
    return operands[:first], operands[first:last], operands[last:]


def _turn(
    scan: Scan,
    args: list[Any],
    wanted: list[int],
    keep: Keep,
    zeros: set[Any],
    claims: Claims = NOBODY,
) -> list[Any]:
    """One turn, with the outputs ``wanted`` as ``keep`` leaves them, or reduced."""
    marked = walk_back(scan.body, [scan.body.outvars[i] for i in wanted])
    of = {scan.body.outvars[i] for i in wanted}
    claims = claims._replace(of={x: own for x, own in claims.of.items() if x in of})
    outs = evaluate(scan.body, scan.consts, args, marked, keep, zeros, claims)
    whole = lambda out: out.materialize() if is_kept(out) else out
    pairs = list(zip(scan.body.outvars, outs, strict=True))
    return [
        claims.settled(var, _as_one(out), last=True) if i in wanted else whole(out)
        for i, (var, out) in enumerate(pairs)
    ]


def _as_one(out: Any) -> Any:
    """One product, or an array: a scan hands on what rows share once for each."""
    if not isinstance(out, SumOfProducts):
        return out
    one = one_product(out)
    return out.materialize() if one is None else one


def _is_worth(leaf: Any, length: int, joins: bool) -> bool:
    """Whether factors of all turns are smaller than what they multiply to."""
    if leaf.is_look_up and not joins:
        return False
    factors = leaf.left.size + leaf.right.size
    return factors * (length if joins else 1) < leaf.size
