"""Running a rule on a stack in memory: the engine that every reducer starts with.

Other engines obtain statistics, products and combinations in other ways; what is done
with them (`weigh`, `resolve`) stands here once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax._rows import verbs
from consensus_optax._rows.verbs import AnyLeaf
from consensus_optax._rules.kinds import (
    After,
    Among,
    Fold,
    Mixing,
    Roster,
    Rule,
    Weighting,
)
from consensus_optax._running.affine import without_overflow
from consensus_optax._running.blocks import reduce_columns
from consensus_optax._running.products import packed, read_products
from consensus_optax._typing import Array, Tree


class FoldState(NamedTuple):
    """State of a fold or of columns.

    Attributes:
      consensus_ratio: () float32, share of coordinates with a non-zero update.
    """

    consensus_ratio: Array


class AmongState(NamedTuple):
    """States of a selector and of the rule that its survivors are given to."""

    selector_state: Any
    rule_state: Any


class MemoryState(NamedTuple):
    """State of a weighting that remembers its previous update.

    Attributes:
      previous: that update, one array for every floating leaf.
      rule_state: the rule's own state.
    """

    previous: list[Array]
    rule_state: Any


class Outcome(NamedTuple):
    """What running a rule gives: update leaves, whether any is there, new state."""

    update: list[Array]
    ready: Array
    state: Any


def init_rule(rule: Rule, params: Tree) -> Any:
    """The rule's own state, zeros of fixed shape and dtype."""
    dtype = verbs.decision_dtype(params)
    match rule:
        case Among():
            return AmongState(
                init_rule(rule.selector, params), init_rule(rule.rule, params)
            )
        case After():
            return init_rule(rule.rule, params)
        case Weighting():
            leaves = [
                leaf
                for leaf in jax.tree.leaves(params)
                if jnp.issubdtype(leaf.dtype, jnp.floating)
            ]
            if rule.scope == "leaf" and not leaves:
                state = ()
            elif rule.scope == "leaf":
                states = [rule.init(leaf, dtype) for leaf in leaves]
                state = jax.tree.map(lambda *fields: jnp.stack(fields), *states)
            else:
                state = rule.init(params, dtype)
            if rule.remembers:
                zeros = [jnp.zeros(leaf.shape, dtype) for leaf in leaves]
                return MemoryState(zeros, state)
            return state
    return FoldState(jnp.zeros((), jnp.float32))


def run(rule: Rule, leaves: list[AnyLeaf], roster: Roster, state: Any) -> Outcome:
    """Runs a rule on rows in memory, both kinds of leaf."""
    match rule:
        case Among():
            products = read_products(rule.selector, leaves, roster)
            chosen, selector = weigh(
                rule.selector, products, roster, state.selector_state
            )
            survivors = jnp.where(chosen > 0, roster.weights, 0)
            outcome = run(
                rule.rule, leaves, roster._replace(weights=survivors), state.rule_state
            )
            return outcome._replace(state=AmongState(selector, outcome.state))
        case After():
            products = read_products(rule.mixing, leaves, roster)
            mixed, mixed_rows = mix(rule.mixing, products, leaves, roster)
            return run(rule.rule, mixed, mixed_rows, state)
        case Weighting(remembers=True):
            previous = state.previous
            products = read_products(rule, leaves, roster, previous)
            weights, rule_state = weigh(rule, products, roster, state.rule_state)
            update = combine_all(leaves, weights[..., :-1], roster)
            update = add_previous(update, weights, previous)
            ready = jnp.any(weights != 0)
            return Outcome(update, ready, MemoryState(update, rule_state))
        case Weighting():
            products = read_products(rule, leaves, roster)
            weights, state = weigh(rule, products, roster, state)
            update = combine_all(leaves, weights, roster)
            return Outcome(update, jnp.any(weights != 0), state)
        case Fold():
            matters = rule.matters and (lambda *first: rule.matters(*first, roster))
            merged = fold_all(rule, leaves, roster, matters)
            return settle(rule.resolve(merged, roster), roster)
    if roster.coordinates.alike:
        return settle(reduce_columns(rule.reduce, leaves, roster), roster)
    by_leaf = [reduce_columns(rule.reduce, [leaf], roster)[0] for leaf in leaves]
    return settle(by_leaf, roster)


def map_previous(fun: Callable[[Any], Any], rule: Rule, state: Any) -> Any:
    """The state with a function of the previous update, where the rule has one."""
    match rule:
        case Among():
            return state._replace(
                rule_state=map_previous(fun, rule.rule, state.rule_state)
            )
        case After():
            return map_previous(fun, rule.rule, state)
        case Weighting(remembers=True):
            return state._replace(previous=fun(state.previous))
    return state


def combine_all(leaves: list[AnyLeaf], weights: Array, roster: Roster) -> list[Array]:
    """sum_i weights[i] row_i of every leaf; weights (B,), or (leaves, B)."""
    if weights.ndim == 2:
        pairs = zip(leaves, weights, strict=True)
        return [verbs.combine(leaf, own, roster.order) for leaf, own in pairs]
    together = packed(leaves, roster)
    return together.unpack(
        [verbs.combine(leaf, weights, roster.order) for leaf in together.leaves]
    )


def fold_all(
    rule: Fold, leaves: list[AnyLeaf], roster: Roster, matters: Any = None
) -> list[list[Array]]:
    """For every statistic of a fold, its merged value in every leaf."""
    together = packed(leaves, roster)
    merged = [
        verbs.fold(leaf, rule.statistics, roster.weights, roster.order, matters)
        for leaf in together.leaves
    ]
    return [together.unpack(list(parts)) for parts in zip(*merged, strict=True)]


def add_previous(
    update: list[Array], weights: Array, previous: list[Array]
) -> list[Array]:
    """The combination of the rows, and the last weight times the previous update."""
    factors = jnp.broadcast_to(weights[..., -1], (len(update),))
    triples = zip(update, factors, previous, strict=True)
    return [leaf + factor * old for leaf, factor, old in triples]


def mix(
    mixing: Mixing, products: Any, leaves: list[AnyLeaf], roster: Roster
) -> tuple[list[AnyLeaf], Roster]:
    """The mixed rows, as leaves that are computed when they are read."""
    given, rows = without_overflow(products, roster)
    matrix, weights = mixing.mix(given, rows)
    matrix = jnp.where(roster.present[None, :], matrix, 0)
    mixed: list[AnyLeaf] = [verbs.Mixed(matrix, leaf, roster.order) for leaf in leaves]
    return mixed, roster._replace(weights=weights)


def weigh(
    rule: Weighting, products: Any, roster: Roster, state: Any
) -> tuple[Array, Any]:
    """Weights (B,) from products, or (leaves, B) where every leaf decides for itself.

    Weights of absent rows are 0 whatever the rule says. A rule whose weights come out
    non-finite has agreed on nothing.
    """

    def decide(given: Any, rule_state: Any) -> tuple[Array, Any]:
        given, sound = without_overflow(given, roster)
        weights, rule_state = rule.weigh(given, sound, rule_state)
        extra = 1 if rule.remembers else 0
        present = jnp.pad(sound.present, (0, extra), constant_values=True)
        weights = jnp.where(present, weights, 0).astype(roster.weights.dtype)
        some = jnp.any(sound.present) & jnp.all(jnp.isfinite(weights))
        return jnp.where(some, weights, 0), rule_state

    if rule.scope == "leaf":
        return jax.vmap(decide)(products, state)
    return decide(products, state)


def settle(update: list[Array], roster: Roster) -> Outcome:
    """No rows, no update; and the share of coordinates that have one."""
    update = [jnp.where(jnp.any(roster.present), leaf, 0) for leaf in update]
    size = max(sum(roster.coordinates.sizes(update)), 1)
    counts = [(leaf != 0).astype(jnp.float32) for leaf in update]
    moved = jnp.stack(roster.coordinates.sums(counts)).sum()
    return Outcome(update, moved > 0, FoldState(moved / size))
