"""Inner products of rows: what weightings and mixings decide from."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from consensus_optax._rows import verbs
from consensus_optax._rows.verbs import AnyLeaf
from consensus_optax._rules.kinds import Mixing, Roster, Weighting
from consensus_optax._running.affine import around_a_row
from consensus_optax._running.packing import Packed, pack
from consensus_optax._typing import Array


def read_products(
    rule: Weighting | Mixing,
    leaves: list[AnyLeaf],
    roster: Roster,
    previous: list[Array] | None = None,
) -> Any:
    """The inner products that a rule reads, 0 where a row is absent.

    They are summed over the leaves, or stacked if every leaf decides for itself.
    """
    if rule.reads == "nothing":
        return None
    coordinates = roster.coordinates
    if previous is None and _scope_of(rule) == "model":
        leaves = packed(leaves, roster).leaves
    olds = previous or [None] * len(leaves)

    def read(reads: str, shares: Array | None = None) -> Array:
        products = [
            _leaf_products(reads, leaf, roster, old, shares)
            for leaf, old in zip(leaves, olds, strict=True)
        ]
        products = coordinates.counted(products)
        return coordinates.total(over_leaves(rule, products))

    if rule.reads == "affine":
        less = lambda shares: read("centered", shares)
        return around_a_row(read("gramian"), less, roster)
    return read(rule.reads)


def packed(leaves: list[AnyLeaf], roster: Roster) -> Packed:
    """Small leaves strung together, if the same devices hold all of them."""
    if roster.coordinates.alike:
        return pack(leaves, roster.weights.dtype)
    return Packed(leaves, lambda results: results)


def _scope_of(rule: Weighting | Mixing) -> str:
    """``"leaf"`` where every leaf decides for itself."""
    return rule.scope if isinstance(rule, Weighting) else "model"


def over_leaves(rule: Weighting | Mixing, products: list[Any]) -> Any:
    """What a rule decides from: products of all leaves summed, or stacked."""
    if rule.reads == "nothing":
        return None
    if _scope_of(rule) == "leaf":
        return jnp.stack(products)
    return sum(products[1:], products[0])


def _leaf_products(
    reads: str,
    leaf: AnyLeaf,
    roster: Roster,
    previous: Array | None,
    shares: Array | None = None,
) -> Any:
    """Inner products of one leaf's rows, bordered by those with a previous update.

    ``shares``: whose mean is taken off centered rows, if not that of all.
    """
    dtype, present = roster.weights.dtype, roster.present
    if verbs.has_layers(leaf):  # one at a time: rows may have to be multiplied out
        olds = [] if previous is None else [previous]
        of_layer = lambda layer, *old: _leaf_products(
            reads, layer, roster, old[0] if old else None, shares
        )
        return verbs.over_layers(of_layer, leaf, *olds)
    if reads == "norms":
        return jnp.where(present, verbs.squared_norms(leaf, dtype), 0)
    if reads == "centered":
        shares = roster.shares if shares is None else shares
        leaf, center = verbs.centered(leaf, shares, roster.order)
        previous = None if previous is None else previous - center
    elif reads == "signs":
        leaf = verbs.signs(leaf, dtype)
        previous = None if previous is None else jnp.sign(previous)
    pairs = present[:, None] & present[None, :]
    gramian = jnp.where(pairs, verbs.gramian(leaf, dtype), 0)
    if previous is None:
        return gramian
    side = jnp.where(present, verbs.inner_products(leaf, previous), 0)
    return border(gramian, side, previous)


def border(gramian: Array, side: Array, previous: Array) -> Array:
    """A Gramian with one row more, whose products with the others are ``side``."""
    corner = jnp.vdot(previous, previous, precision=lax.Precision.HIGHEST)
    top = jnp.concatenate([gramian, side[:, None]], 1)
    return jnp.concatenate([top, jnp.append(side, corner)[None]], 0)
