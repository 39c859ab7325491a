"""Running a rule on a stack in memory: the engine that every reducer starts with.

Other engines obtain statistics, products and combinations in other ways; what is done
with them (`weigh`, `resolve`) stands here once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax import _leaves
from consensus_optax._affine import around_a_row, without_overflow
from consensus_optax._blocks import reduce_columns
from consensus_optax._leaves import AnyLeaf
from consensus_optax._packing import pack
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
            survivors = jnp.where(chosen[0] > 0, rows.weights, 0)
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
            triples = zip(leaves, weights, previous, strict=True)
            update = [
                _leaves.combine(leaf, w[:-1], rows.order) + w[-1] * old
                for leaf, w, old in triples
            ]
            return Outcome(update, any_weight(weights), MemoryState(update, rule_state))
        case Weighting():
            products = read_products(rule, leaves, rows)
            weights, state = weigh(rule, products, rows, state)
            if rule.scope == "model":
                update = combine_all(leaves, weights[0], rows.order)
            else:
                pairs = zip(leaves, weights, strict=True)
                update = [_leaves.combine(leaf, w, rows.order) for leaf, w in pairs]
            return Outcome(update, any_weight(weights), state)
        case Fold():
            matters = rule.matters and (lambda *first: rule.matters(*first, rows))
            merged = fold_all(rule, leaves, rows, matters)
            return settle(rule.resolve(merged, rows), rows)
    return settle(reduce_columns(rule.reduce, leaves, rows), rows)


def combine_all(leaves: list[AnyLeaf], weights: Array, order: Array) -> list[Array]:
    """sum_i weights[i] row_i of every leaf."""
    packed = pack(leaves, weights.dtype)
    return packed.unpack(
        [_leaves.combine(leaf, weights, order) for leaf in packed.leaves]
    )


def fold_all(
    rule: Fold, leaves: list[AnyLeaf], rows: Rows, matters: Any = None
) -> list[list[Array]]:
    """For every statistic of a fold, its merged value in every leaf."""
    packed = pack(leaves, rows.weights.dtype)
    merged = [
        _leaves.fold(leaf, rule.statistics, rows.weights, rows.order, matters)
        for leaf in packed.leaves
    ]
    return [packed.unpack(list(parts)) for parts in zip(*merged, strict=True)]


def any_weight(weights: list[Array]) -> Array:
    """Whether any row has any weight in any leaf, () bool."""
    return jnp.any(jnp.stack([jnp.any(w != 0) for w in weights]))


def read_products(
    rule: Weighting | Mixing,
    leaves: list[AnyLeaf],
    rows: Rows,
    previous: list[Array] | None = None,
) -> list[Any]:
    """Per leaf, the inner products that a rule reads, 0 where a row is absent."""
    scope = rule.scope if isinstance(rule, Weighting) else "model"
    if previous is None and scope == "model":  # to be summed over leaves
        leaves = pack(leaves, rows.weights.dtype).leaves
    olds = previous or [None] * len(leaves)
    given = list(zip(leaves, olds, strict=True))
    if rule.reads == "affine":
        return around_a_row(
            [_leaf_products("gramian", leaf, rows, old) for leaf, old in given],
            lambda shares: [
                _leaf_products("centered", leaf, rows, old, shares)
                for leaf, old in given
            ],
            rows,
        )
    return [_leaf_products(rule.reads, leaf, rows, old) for leaf, old in given]


def _leaf_products(
    reads: str,
    leaf: AnyLeaf,
    rows: Rows,
    previous: Array | None,
    shares: Array | None = None,
) -> Any:
    """Inner products of one leaf's rows, bordered by those with a previous update.

    ``shares``: whose mean is taken off centered rows, if not that of all.
    """
    dtype, present = rows.weights.dtype, rows.present
    if reads == "nothing":
        return None
    if reads == "norms":
        return jnp.where(present, _leaves.squared_norms(leaf, dtype), 0)
    if reads == "centered":
        shares = rows.shares if shares is None else shares
        leaf, center = _leaves.centered(leaf, shares, rows.order)
        previous = None if previous is None else previous - center
    elif reads == "signs":
        leaf = _leaves.signs(leaf, dtype)
        previous = None if previous is None else jnp.sign(previous)
    pairs = present[:, None] & present[None, :]
    gramian = jnp.where(pairs, _leaves.gramian(leaf, dtype), 0)
    if previous is None:
        return gramian
    side = jnp.where(present, _leaves.inner_products(leaf, previous), 0)
    return border(gramian, side, previous)


def border(gramian: Array, side: Array, previous: Array) -> Array:
    """A Gramian with one row more, whose products with the others are ``side``."""
    corner = jnp.vdot(previous, previous, precision=lax.Precision.HIGHEST)
    top = jnp.concatenate([gramian, side[:, None]], 1)
    return jnp.concatenate([top, jnp.append(side, corner)[None]], 0)


def mix(
    mixing: Mixing, products: list[Any], leaves: list[AnyLeaf], rows: Rows
) -> tuple[list[AnyLeaf], Rows]:
    """The mixed rows, as leaves that are computed when they are read."""
    given = None if mixing.reads == "nothing" else sum(products[1:], products[0])
    given, rows = without_overflow(given, rows)
    matrix, weights = mixing.mix(given, rows)
    matrix = jnp.where(rows.present[None, :], matrix, 0)
    mixed: list[AnyLeaf] = [_leaves.Mixed(matrix, leaf, rows.order) for leaf in leaves]
    return mixed, rows._replace(weights=weights)


def weigh(
    rule: Weighting, products: list[Any], rows: Rows, state: Any
) -> tuple[list[Array], Any]:
    """Weights for every leaf, (B,) each, from the products of every leaf.

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
        given = None if rule.reads == "nothing" else jnp.stack(products)
        weights, state = jax.vmap(decide)(given, state)
        return list(weights), state
    given = None if rule.reads == "nothing" else sum(products[1:], products[0])
    weights, state = decide(given, state)
    return [weights] * len(products), state


def settle(update: list[Array], rows: Rows) -> Outcome:
    """No rows, no update; and the share of coordinates that have one."""
    update = [jnp.where(jnp.any(rows.present), leaf, 0) for leaf in update]
    size = max(sum(leaf.size for leaf in update), 1)
    counts = [jnp.sum(leaf != 0, dtype=jnp.float32) for leaf in update]
    moved = jnp.stack(counts).sum()
    return Outcome(update, moved > 0, FoldState(moved / size))
