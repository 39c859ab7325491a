"""A weighting and a source: weights, and what rows combine to with them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax._rows.trees import floating_leaves
from consensus_optax._rules.arithmetic import positive_or_one, with_all_digits
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.products import (
    read_products,
    scale_read,
    without_overflow,
)
from consensus_optax._running.source import Source, Unseen
from consensus_optax._typing import Array


class Weighed(NamedTuple):
    """What a weighting decides.

    Attributes:
      weights: (B,), or (leaves, B) where every leaf decides for itself; one more for
        the previous update where that joins.
      state: the rule's new state.
      num_lost: () int32, how many rows have no finite bound of their norm, in any leaf
        that decides.
      total: () or (leaves,) what the rows weigh that have products.
    """

    weights: Array
    state: Any
    num_lost: Array | int
    total: Array


def weigh(
    rule: Weighting, source: Source, state: Any, previous: list[Array] | None = None
) -> tuple[Weighed, Source]:
    """Weights, once all rows have been looked at."""
    if previous is None and rule.reads == Reads.TOWARD:
        previous = _target(source.seen.roster)
    products, source = read_products(rule, source, rule.per_leaf, previous)
    return _decided(rule, products, source, state), source


def combine(
    rule: Weighting, source: Source, state: Any, exact: bool = False
) -> tuple[list[Array], Weighed, Source]:
    """What rows combine to, with as few looks at them as the rule lets do."""
    if isinstance(source, Unseen):
        found = _combined_apart(rule, source, state, exact) if rule.apart else None
        if found is not None:
            return found
        if rule.reads == Reads.NOTHING and not rule.per_leaf and not exact:
            weights = lambda source: weigh(rule, source, state)[0].weights
            update, source = source.combine_on_trust(weights)
            return update, *weigh(rule, source, state)
    weighed, source = weigh(rule, source, state)
    return source.combine(weighed.weights, exact), weighed, source


def _combined_apart(
    rule: Weighting, source: Unseen, state: Any, exact: bool
) -> tuple[list[Array], Weighed, Source] | None:
    """The same of weights that each row decides as it is seen.

    All that others decide is a number: shares are of what all rows weigh, and whether
    there is any weight at all.
    """

    def look(some: Source) -> tuple[Any, Any, Array]:
        products, some = read_products(rule, some, rule.per_leaf)
        weights = _decided(rule, products, some, state).weights
        return products, scale_read(rule, some), weights

    found = source.combine_apart(look, exact)
    if found is None:
        return None
    combined, source = found
    weighed = _decided(rule, combined.products, source, state)
    moves = jnp.any(weighed.weights != 0, -1)  # () or (leaves,)
    more = combined.total / positive_or_one(weighed.total)
    factor = jnp.where(moves, more if rule.apart == "share" else 1, 0)
    factors = jnp.broadcast_to(factor.astype(more.dtype), (len(combined.update),))
    pairs = zip(combined.update, factors, strict=True)
    return [leaf * factor for leaf, factor in pairs], weighed, source


def _decided(rule: Weighting, products: Any, source: Source, state: Any) -> Weighed:
    """Weights from what has been read.

    Those of absent rows are 0 whatever the rule says. A rule whose weights come out
    non-finite has agreed on nothing.
    """
    scale = scale_read(rule, source)
    roster = source.seen.roster._replace(scale=scale)
    if rule.per_leaf:
        roster = roster._replace(num_leaves=products.shape[0])

    def decide(given: Any, rule_state: Any) -> tuple[Array, Any, Array]:
        given, sound = without_overflow(given, roster, rule.reads)
        with with_all_digits():
            weights, rule_state = rule.weigh(given, sound, rule_state)
        extra = 1 if rule.remembers else 0
        present = jnp.pad(sound.present, (0, extra), constant_values=True)
        weights = jnp.where(present, weights, 0).astype(roster.weights.dtype)
        if rule.degree:
            weights *= scale**-rule.degree
        some = jnp.any(sound.present) & jnp.all(jnp.isfinite(weights))
        return jnp.where(some, weights, 0), rule_state, sound.total

    run_once = jax.vmap(decide) if rule.per_leaf else decide
    weights, after, total = run_once(products, state)
    return Weighed(weights, after, _num_lost(rule, products), total)


def _num_lost(rule: Weighting, products: Any) -> Array | int:
    """How many rows have no finite bound of their norm, in any leaf that decides."""
    if rule.reads != Reads.NORM_BOUNDS:
        return 0
    finite = jnp.isfinite(products)
    return jnp.sum(~(finite.all(0) if rule.per_leaf else finite), dtype=jnp.int32)


def _target(roster: Roster) -> list[Array]:
    """The update-shaped array that rows are compared with."""
    target = roster.extra.get("target")
    if target is None:
        raise ValueError(
            "`target` must be a tree like the parameters, say the gradient of a "
            "validation loss, passed as `update(rows, state, params, target=target)`; "
            "got None."
        )
    return [leaf.astype(roster.weights.dtype) for leaf in floating_leaves(target)]
