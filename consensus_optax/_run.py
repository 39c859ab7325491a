"""Running a rule on a stack in memory: the engine that every reducer starts with.

Other engines obtain statistics, products and combinations in other ways; what is done
with them (`weigh`, `resolve`) stands here once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax import _leaves
from consensus_optax._leaves import Leaf
from consensus_optax._rules import Among, Fold, Rows, Rule, Weighting
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
        case Weighting(scope="leaf"):
            leaves = [
                leaf
                for leaf in jax.tree.leaves(params)
                if jnp.issubdtype(leaf.dtype, jnp.floating)
            ]
            states = [rule.init(leaf, dtype) for leaf in leaves]
            return jax.tree.map(lambda *fields: jnp.stack(fields), *states)
        case Weighting():
            return rule.init(params, dtype)
    return FoldState(jnp.zeros((), jnp.float32))


def run(rule: Rule, leaves: list[Leaf], rows: Rows, state: Any) -> Outcome:
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
        case Weighting():
            products = read_products(rule, leaves, rows)
            weights, state = weigh(rule, products, rows, state)
            pairs = zip(leaves, weights, strict=True)
            update = [_leaves.combine(leaf, w, rows.order) for leaf, w in pairs]
            ready = jnp.any(jnp.stack([jnp.any(w != 0) for w in weights]))
            return Outcome(update, ready, state)
        case Fold():
            merged = [
                _leaves.fold(leaf, rule.statistics, rows.weights, rows.order)
                for leaf in leaves
            ]
            return resolve(rule, merged, rows)
    columns = [
        _leaves.present_rows(leaf, rows.present, rows.weights.dtype) for leaf in leaves
    ]
    return settle([rule.reduce(column, rows.weights) for column in columns], rows)


def read_products(rule: Weighting, leaves: list[Leaf], rows: Rows) -> list[Any]:
    """Per leaf, the inner products that a weighting reads."""
    read = {"gramian": _leaves.gramian, "norms": _leaves.squared_norms}.get(rule.reads)
    return [read and read(leaf, rows.weights.dtype) for leaf in leaves]


def weigh(
    rule: Weighting, products: list[Any], rows: Rows, state: Any
) -> tuple[list[Array], Any]:
    """Weights for every leaf, (B,) each, from the products of every leaf.

    Absent rows are cut out by selection before the rule and after it. A rule whose
    weights come out non-finite has agreed on nothing.
    """
    present = rows.present
    if rule.reads == "gramian":
        present_pairs = present[:, None] & present[None, :]
        products = [jnp.where(present_pairs, gram, 0) for gram in products]
    elif rule.reads == "norms":
        products = [jnp.where(present, norms, 0) for norms in products]

    def decide(given: Any, rule_state: Any) -> tuple[Array, Any]:
        weights, rule_state = rule.weigh(given, rows, rule_state)
        sound = jnp.all(jnp.isfinite(jnp.where(present, weights, 0)))
        return jnp.where(present & sound, weights, 0).astype(
            rows.weights.dtype
        ), rule_state

    if rule.scope == "leaf":
        given = None if rule.reads == "nothing" else jnp.stack(products)
        weights, state = jax.vmap(decide)(given, state)
        return list(weights), state
    given = None if rule.reads == "nothing" else sum(products[1:], products[0])
    weights, state = decide(given, state)
    return [weights] * len(products), state


def resolve(rule: Fold, merged: list[tuple[Array, ...]], rows: Rows) -> Outcome:
    """The update of a fold from the merged statistics of every leaf."""
    by_statistic = [list(leaves) for leaves in zip(*merged, strict=True)]
    return settle(rule.resolve(by_statistic, rows), rows)


def settle(update: list[Array], rows: Rows) -> Outcome:
    """No rows, no update; and the share of coordinates that have one."""
    update = [jnp.where(jnp.any(rows.present), leaf, 0) for leaf in update]
    size = max(sum(leaf.size for leaf in update), 1)
    moved = sum(jnp.sum(leaf != 0, dtype=jnp.float32) for leaf in update)
    return Outcome(update, moved > 0, FoldState(jnp.float32(moved) / size))
