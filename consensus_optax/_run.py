"""Running a rule on a stack in memory: the engine that every reducer starts with.

Other engines obtain statistics, products and combinations in other ways; what is done
with them (`weigh`, `resolve`) stands here once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax import _leaves
from consensus_optax._affine import without_overflow
from consensus_optax._blocks import reduce_columns
from consensus_optax._leaves import AnyLeaf
from consensus_optax._products import packed, read_products
from consensus_optax._rules import (
    After,
    Among,
    Fold,
    Mixing,
    Rows,
    Rule,
    Weighting,
)
from consensus_optax._typing import Array, Tree


class FoldState(NamedTuple):
    """State of a fold or of columns.

    Attributes:
      consensus_ratio: () float32, share of coordinates with a non-zero update.
    """

    consensus_ratio: Array


class AmongState(NamedTuple):
    """States of a selector and of the rule that its survivors are given to."""

    selector: Any
    rule: Any


class MemoryState(NamedTuple):
    """State of a weighting that remembers its previous update.

    Attributes:
      previous: that update, one array for every floating leaf.
      rule: the rule's own state.
    """

    previous: list[Array]
    rule: Any


class Outcome(NamedTuple):
    """What running a rule gives: update leaves, whether any is there, new state."""

    update: list[Array]
    ready: Array
    state: Any


def init_rule(rule: Rule, params: Tree) -> Any:
    """The rule's own state, zeros of fixed shape and dtype."""
    dtype = _leaves.decision_dtype(params)
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


def run(rule: Rule, leaves: list[AnyLeaf], rows: Rows, state: Any) -> Outcome:
    """Runs a rule on rows in memory, both kinds of leaf."""
    match rule:
        case Among():
            products = read_products(rule.selector, leaves, rows)
            chosen, selector = weigh(rule.selector, products, rows, state.selector)
            survivors = jnp.where(chosen > 0, rows.weights, 0)
            outcome = run(
                rule.rule, leaves, rows._replace(weights=survivors), state.rule
            )
            return outcome._replace(state=AmongState(selector, outcome.state))
        case After():
            products = read_products(rule.mixing, leaves, rows)
            mixed, mixed_rows = mix(rule.mixing, products, leaves, rows)
            return run(rule.rule, mixed, mixed_rows, state)
        case Weighting(remembers=True):
            previous = state.previous
            products = read_products(rule, leaves, rows, previous)
            weights, rule_state = weigh(rule, products, rows, state.rule)
            update = combine_all(leaves, weights[..., :-1], rows)
            update = add_previous(update, weights, previous)
            ready = jnp.any(weights != 0)
            return Outcome(update, ready, MemoryState(update, rule_state))
        case Weighting():
            products = read_products(rule, leaves, rows)
            weights, state = weigh(rule, products, rows, state)
            update = combine_all(leaves, weights, rows)
            return Outcome(update, jnp.any(weights != 0), state)
        case Fold():
            matters = rule.matters and (lambda *first: rule.matters(*first, rows))
            merged = fold_all(rule, leaves, rows, matters)
            return settle(rule.resolve(merged, rows), rows)
    if rows.coordinates.alike:
        return settle(reduce_columns(rule.reduce, leaves, rows), rows)
    by_leaf = [reduce_columns(rule.reduce, [leaf], rows)[0] for leaf in leaves]
    return settle(by_leaf, rows)


def map_previous(fun: Callable[[Any], Any], rule: Rule, state: Any) -> Any:
    """The state with a function of the previous update, where the rule has one."""
    match rule:
        case Among():
            return state._replace(rule=map_previous(fun, rule.rule, state.rule))
        case After():
            return map_previous(fun, rule.rule, state)
        case Weighting(remembers=True):
            return state._replace(previous=fun(state.previous))
    return state


def combine_all(leaves: list[AnyLeaf], weights: Array, rows: Rows) -> list[Array]:
    """sum_i weights[i] row_i of every leaf; weights (B,), or (leaves, B)."""
    if weights.ndim == 2:
        pairs = zip(leaves, weights, strict=True)
        return [_leaves.combine(leaf, own, rows.order) for leaf, own in pairs]
    together = packed(leaves, rows)
    return together.unpack(
        [_leaves.combine(leaf, weights, rows.order) for leaf in together.leaves]
    )


def fold_all(
    rule: Fold, leaves: list[AnyLeaf], rows: Rows, matters: Any = None
) -> list[list[Array]]:
    """For every statistic of a fold, its merged value in every leaf."""
    together = packed(leaves, rows)
    merged = [
        _leaves.fold(leaf, rule.statistics, rows.weights, rows.order, matters)
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
    mixing: Mixing, products: Any, leaves: list[AnyLeaf], rows: Rows
) -> tuple[list[AnyLeaf], Rows]:
    """The mixed rows, as leaves that are computed when they are read."""
    given, rows = without_overflow(products, rows)
    matrix, weights = mixing.mix(given, rows)
    matrix = jnp.where(rows.present[None, :], matrix, 0)
    mixed: list[AnyLeaf] = [_leaves.Mixed(matrix, leaf, rows.order) for leaf in leaves]
    return mixed, rows._replace(weights=weights)


def weigh(rule: Weighting, products: Any, rows: Rows, state: Any) -> tuple[Array, Any]:
    """Weights (B,) from products, or (leaves, B) where every leaf decides for itself.

    Weights of absent rows are 0 whatever the rule says. A rule whose weights come out
    non-finite has agreed on nothing.
    """

    def decide(given: Any, rule_state: Any) -> tuple[Array, Any]:
        given, sound = without_overflow(given, rows)
        weights, rule_state = rule.weigh(given, sound, rule_state)
        extra = 1 if rule.remembers else 0
        present = jnp.pad(sound.present, (0, extra), constant_values=True)
        weights = jnp.where(present, weights, 0).astype(rows.weights.dtype)
        some = jnp.any(sound.present) & jnp.all(jnp.isfinite(weights))
        return jnp.where(some, weights, 0), rule_state

    if rule.scope == "leaf":
        return jax.vmap(decide)(products, state)
    return decide(products, state)


def settle(update: list[Array], rows: Rows) -> Outcome:
    """No rows, no update; and the share of coordinates that have one."""
    update = [jnp.where(jnp.any(rows.present), leaf, 0) for leaf in update]
    size = max(sum(rows.coordinates.sizes(update)), 1)
    counts = [(leaf != 0).astype(jnp.float32) for leaf in update]
    moved = jnp.stack(rows.coordinates.sums(counts)).sum()
    return Outcome(update, moved > 0, FoldState(moved / size))
