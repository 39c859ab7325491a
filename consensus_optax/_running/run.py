"""The interpreter: a rule and a source of rows to an update. Kinds of rule stand here.

How rows come is the source's affair (`source.py`); what a rule decides is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax._rows import verbs
from consensus_optax._rows.trees import floating_leaves, memory, refilled
from consensus_optax._rules.arithmetic import with_all_digits
from consensus_optax._rules.kinds import (
    After,
    Among,
    Columns,
    Fold,
    Noised,
    Remembered,
    Roster,
    Rule,
    Weighting,
)
from consensus_optax._rules.roster import UNPROTECTED
from consensus_optax._running.source import Source
from consensus_optax._running.states import (
    AfterState,
    AmongState,
    FoldState,
    MemoryState,
)
from consensus_optax._running.steps import init_step, taken
from consensus_optax._running.weighing import Weighed, combine, weigh
from consensus_optax._typing import Array, Marked, Number, Tree


class Outcome(NamedTuple):
    """What running a rule gives.

    Attributes:
      update: one array for every floating leaf.
      ready: () bool, whether anything was agreed on.
      state: the rule's new state.
      accepted: (B,) bool, the rows that the update is made of.
      ratio: () float32, share of coordinates that move.
      num_lost: () int32, rows that count as nothing since no bound of their norm is
        finite, though they are.
    """

    update: list[Array]
    ready: Array
    state: Any
    accepted: Marked
    ratio: Number
    num_lost: Array | int = 0


def init_rule(rule: Rule, params: Tree) -> Any:
    """The rule's own state, zeros of fixed shape and dtype."""
    dtype = verbs.decision_dtype(params)
    zeros = lambda: memory(params, lambda leaf: jnp.zeros_like(leaf, dtype))
    match rule:
        case Among():
            selector = init_rule(rule.selector, params)
            return AmongState(selector, init_rule(rule.rule, params))
        case After():
            first = init_step(rule.first, params, dtype)
            return AfterState(first, init_rule(rule.rule, params))
        case Noised():
            return init_rule(rule.rule, params)
        case Weighting():
            state = (
                _of_each_leaf(rule, floating_leaves(params), dtype)
                if rule.per_leaf
                else rule.init(params, dtype)
            )
            return MemoryState(zeros(), state) if rule.remembers else state
        case Fold(remembers=names) if names:
            arrays = {name: zeros() for name in names}
            return FoldState(jnp.zeros((), jnp.int32), arrays)
    return ()


def _of_each_leaf(rule: Weighting, leaves: list[Array], dtype: Any) -> Any:
    """States of all leaves, stacked; they are alike, and there may be none."""
    states = [rule.init(leaf, dtype) for leaf in leaves or [jnp.zeros((), dtype)]]
    stacked = jax.tree.map(lambda *fields: jnp.stack(fields), *states)
    return jax.tree.map(lambda field: field[: len(leaves)], stacked)


def run(rule: Rule, source: Source, state: Any) -> tuple[Outcome, Source]:
    """Runs a rule on rows; the source that comes back has seen all of them."""
    match rule:
        case Among():
            chosen, source = weigh(rule.selector, source, state.selector_state)
            survivors = jnp.where(chosen.weights > 0, source.seen.roster.weights, 0)
            outcome, _ = run(rule.rule, source.among(survivors), state.rule_state)
            new = AmongState(chosen.state, outcome.state)
            return outcome._replace(state=new), source
        case After(first=first):
            changed, source, stepped = taken(first, source, state.step_state)
            outcome, after = run(rule.rule, changed.source, state.rule_state)
            stepped = changed.state_after(after, stepped)
            outcome = outcome._replace(state=AfterState(stepped, outcome.state))
            if changed.matrix is None:
                return outcome, after
            own = (outcome.accepted[:, None] & (changed.matrix != 0)).any(0)  # (B,)
            return outcome._replace(accepted=own), source
        case Weighting(remembers=True):
            previous = floating_leaves(state.previous)
            found, source = weigh(rule, source, state.rule_state, previous)
            coordinates = source.seen.roster.coordinates
            update = source.combine(found.weights[..., :-1])
            update = _added(update, found.weights, coordinates.own(previous))
            update = coordinates.whole(update, True)
            kept = refilled(state.previous, update)
            found = found._replace(state=MemoryState(kept, found.state))
            return _combined(update, found, source), source
        case Weighting():
            update, found, source = combine(rule, source, state)
            outcome = _combined(update, found, source)
            whole = source.seen.roster.coordinates.whole(update, False)
            return outcome._replace(update=whole), source
        case Noised():
            update, found, source = combine(rule.rule, source, state, exact=True)
            roster = source.seen.roster
            if UNPROTECTED in roster.extra:
                raise ValueError(
                    "`memory` must keep no control variates where the server's rule is "
                    "a private sum: their mean is handed to every client without a "
                    "bound or noise. Train without `control_variates`."
                )
            with with_all_digits():
                update = rule.add(update, roster, state)
            outcome = _combined(update, found, source)
            update = roster.coordinates.whole(update, False)
            always = {"ready": jnp.ones((), bool), "ratio": jnp.ones((), jnp.float32)}
            return outcome._replace(update=update, **always), source
        case Fold():
            merged, source = source.statistics(rule)
            return resolved(rule, merged, source.seen.roster, state), source
        case Columns():
            update, source = source.columns(rule)
            return _settled(update, source.seen.roster), source


def resolved(
    rule: Fold, merged: list[list[Array]], roster: Roster, state: Any
) -> Outcome:
    """What a fold makes of the merged statistics of all rows, and of what it has kept.

    Where rows are dealt out as coordinates, that is whole on every device meanwhile,
    and travels with the update.
    """
    if not rule.remembers:
        with with_all_digits():
            update = rule.resolve(merged, roster)
        return _settled(update, roster)
    some, coordinates = jnp.any(roster.present), roster.coordinates
    own = {
        name: coordinates.own(floating_leaves(kept))
        for name, kept in state.arrays.items()
    }
    with with_all_digits():
        update, new = rule.resolve(merged, roster, Remembered(state.count, own))
    arrays = {}
    for name, kept in own.items():
        pairs = zip(new[name], kept, strict=True)
        pieces = [jnp.where(some, fresh, old) for fresh, old in pairs]
        arrays[name] = refilled(state.arrays[name], coordinates.whole(pieces, True))
    state = FoldState(state.count + some.astype(jnp.int32), arrays)
    return _settled(update, roster)._replace(state=state)


def map_previous(fun: Callable[[list[Any]], Any], rule: Rule, state: Any) -> Any:
    """The state with a function of what is kept like the parameters, if anything is.

    Of its floating leaves, to as many.
    """
    of_leaves = lambda kept: refilled(kept, fun(floating_leaves(kept)))
    match rule:
        case Among() | After():
            inner = map_previous(fun, rule.rule, state.rule_state)
            return state._replace(rule_state=inner)
        case Weighting(remembers=True):
            return state._replace(previous=of_leaves(state.previous))
        case Fold(remembers=names) if names:
            arrays = {name: of_leaves(kept) for name, kept in state.arrays.items()}
            return state._replace(arrays=arrays)
    return state


def _added(update: list[Array], weights: Array, previous: list[Array]) -> list[Array]:
    """The combination of the rows, and the last weight times the previous update."""
    factors = jnp.broadcast_to(weights[..., -1], (len(update),))
    triples = zip(update, factors, previous, strict=True)
    return [leaf + factor * old for leaf, factor, old in triples]


def _combined(update: list[Array], found: Weighed, source: Source) -> Outcome:
    """What a weighting gives: a leaf moves as a whole, or not at all."""
    roster, weights = source.seen.roster, found.weights
    num_rows = roster.weights.shape[0]
    accepted = (weights[..., :num_rows] > 0).reshape(-1, num_rows).any(0)
    moves = jnp.any(weights != 0, -1)  # () or (leaves,)
    sizes = roster.coordinates.sizes(update)
    shares = jnp.array([size / max(sum(sizes), 1) for size in sizes], jnp.float32)
    ratio = (
        jnp.where(moves, shares, 0).sum() if moves.ndim else moves.astype(jnp.float32)
    )
    ready = jnp.any(moves)
    return Outcome(update, ready, found.state, accepted, ratio, found.num_lost)


def _settled(update: list[Array], roster: Roster) -> Outcome:
    """No rows, no update; and the share of coordinates that have one."""
    coordinates = roster.coordinates
    update = [jnp.where(jnp.any(roster.present), leaf, 0) for leaf in update]
    size = float(max(sum(coordinates.sizes(update)), 1))  # may be beyond int32
    counts = [(leaf != 0).astype(jnp.float32) for leaf in update]
    moved = jnp.stack(coordinates.sums(counts)).sum()
    whole = coordinates.whole(update, False)
    accepted = roster.present & (moved > 0)
    return Outcome(whole, moved > 0, (), accepted, moved / size)
