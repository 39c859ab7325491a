"""Rows in memory: the source that every reducer starts with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._rows import verbs
from consensus_optax._rows.finite import finite_rows
from consensus_optax._rows.gramians import border, gramian_about, is_table_or_vectors
from consensus_optax._rows.magnitudes import rough_squares
from consensus_optax._rows.norm_bounds import squared_norm_bounds
from consensus_optax._rows.outer_product import OuterProduct, is_outer_product
from consensus_optax._rows.varying import varying_like
from consensus_optax._rows.verbs import AnyLeaf
from consensus_optax._rules.kinds import Columns, Fold, Reads, Roster
from consensus_optax._running.blocks import reduce_columns
from consensus_optax._running.packing import Packed, pack
from consensus_optax._running.source import Asked, Seen
from consensus_optax._typing import Array


class Memory(NamedTuple):
    """Rows that are held, factored or not: of all coordinates, or of this device's.

    Attributes:
      leaves: the rows.
      seen: which they are. Its coordinates say which are at hand, and sum over all.
    """

    leaves: Sequence[AnyLeaf]
    seen: Seen

    def inner(self, asked: Asked) -> tuple[Any, Memory]:
        """See `Source`; so are the others."""
        if asked.reads == Reads.NOTHING:
            return None, self
        if asked.rescale is None:
            return self._inner(asked), self
        squares = self._squares(asked)
        scale = asked.rescale.of(squares, self.seen.roster)
        products = self._inner(asked._replace(scale=scale, rescale=None))
        return products, self._replace(seen=self.seen._replace(scale=scale))

    def _squares(self, asked: Asked) -> Array:
        """Squared norms to a few powers of ten, ahead of a look, (B,) or (B + 1,).

        Of products from above, and by their factors alone.
        """
        roster, coordinates = self.seen.roster, self.seen.roster.coordinates
        dtype, previous = roster.weights.dtype, coordinates.own(asked.previous or [])
        leaves = self.leaves if previous else self._packed.leaves
        squares = [rough_squares(leaf, dtype) for leaf in leaves]
        squares = [jnp.where(roster.present, x, 0) for x in squares]
        if previous:
            pairs = zip(squares, previous, strict=True)
            squares = [jnp.append(x, jnp.sum(old * old)) for x, old in pairs]
        squares = coordinates.counted(squares)
        return coordinates.total(sum(squares[1:], squares[0]))

    def _inner(self, asked: Asked) -> Any:
        """The products alone."""
        roster, leaves = self.seen.roster, self.leaves
        coordinates = roster.coordinates
        if asked.previous is None and not asked.per_leaf:
            leaves = self._packed.leaves
            previous = [None] * len(leaves)
        else:
            previous = coordinates.own(asked.previous or []) or [None] * len(leaves)
        pairs = zip(leaves, previous, strict=True)
        products = [_of_leaf(asked, leaf, roster, old) for leaf, old in pairs]
        products = coordinates.counted(products)
        return coordinates.total(over_leaves(asked, products))

    def combine(self, weights: Array, exact: bool = False) -> list[Array]:
        """Rows of weight 0 are never read."""
        del exact  # nothing travels
        order = self.seen.roster.order
        if weights.ndim == 2:
            pairs = zip(self.leaves, weights, strict=True)
            return [verbs.combine(leaf, own, order) for leaf, own in pairs]
        packed = self._packed
        return packed.unpack(
            [verbs.combine(leaf, weights, order) for leaf in packed.leaves]
        )

    def statistics(self, rule: Fold) -> tuple[list[list[Array]], Memory]:
        """One statistic after the other, small leaves together."""
        roster, packed = self.seen.roster, self._packed
        matters = rule.matters and (lambda *first: rule.matters(*first, roster))
        merged = [
            verbs.fold(leaf, rule.statistics, roster.weights, roster.order, matters)
            for leaf in packed.leaves
        ]
        by_statistic = zip(*merged, strict=True)
        return [_unpacked(packed, parts) for parts in by_statistic], self

    def columns(self, rule: Columns) -> tuple[list[Array], Memory]:
        """All leaves in one loop over blocks, if the same devices hold them."""
        roster = self.seen.roster
        if roster.coordinates.alike:
            return reduce_columns(rule.reduce, self.leaves, roster), self
        reduce = lambda leaf: reduce_columns(rule.reduce, [leaf], roster)[0]
        return list(map(reduce, self.leaves)), self

    def among(self, weights: Array) -> Memory:
        """Nothing is computed."""
        return self._replace(seen=self.seen.among(weights))

    def scaled(self, factors: Array, sound: Array, tested: bool) -> Memory:
        """Of products one factor is scaled; arrays are not rounded to narrow dtypes."""
        factors = jnp.broadcast_to(factors, self.seen.roster.weights.shape)
        leaves = [verbs.scale(leaf, factors) for leaf in self.leaves]
        seen = self.seen.without(sound)
        if not tested:
            bad = _overflown(leaves, seen.roster.weights.dtype, factors)
            seen = seen.without(seen.roster.coordinates.total(bad) == 0)
        return Memory(leaves, seen)

    def mixed(self, matrix: Array, weights: Array) -> Memory:
        """Leaves that are computed when they are read."""
        order = self.seen.roster.order
        leaves = [verbs.Mixed(matrix, leaf, order) for leaf in self.leaves]
        return Memory(leaves, self.seen.among(weights))

    def multiplied_out(
        self, send: Callable[[list[Array]], list[Array]], signs: bool
    ) -> tuple[list[Array], Memory]:
        """What ``send`` makes of the rows as arrays, or of their signs in int8."""
        dtype = self.seen.roster.weights.dtype
        return send([as_sent(leaf, signs, dtype) for leaf in self.leaves]), self

    @property
    def _packed(self) -> Packed:
        """Small leaves strung together, if the same devices hold all of them."""
        roster = self.seen.roster
        if roster.coordinates.alike:
            return pack(self.leaves, roster.weights.dtype)
        return Packed(self.leaves, lambda results: results)


def _overflown(leaves: Sequence[AnyLeaf], dtype: Any, factors: Array) -> Array:
    """Above 0 for rows that are not finite any more, (B,) int32; 0 if none grew."""
    given: list[Any] = [
        verbs.as_array(leaf, dtype) if isinstance(leaf, verbs.Mixed) else leaf
        for leaf in leaves
    ]
    look = lambda: (~finite_rows(given, dtype)).astype(jnp.int32)
    none = varying_like(jnp.zeros(factors.shape, jnp.int32), given, factors)
    return lax.cond(jnp.any(factors > 1), look, lambda: none)


def as_sent(leaf: AnyLeaf, signs: bool, dtype: Any) -> Array:
    """Rows multiplied out in their own dtype, or their signs in int8."""
    if signs:
        own = verbs.as_array(leaf, dtype) if isinstance(leaf, verbs.Mixed) else leaf
        return verbs.as_array(verbs.signs(own, dtype), dtype).astype(jnp.int8)
    return verbs.as_array(leaf, dtype if isinstance(leaf, verbs.Mixed) else leaf.dtype)


def toward(leaf: AnyLeaf, target: Array, dtype: Any) -> Array:
    """Squared norms of rows, and their inner products with one array, (2, B)."""
    inner = verbs.inner_products(leaf, target.astype(dtype))
    return jnp.stack([verbs.squared_norms(leaf, dtype), inner])


def with_target(products: Array, present: Array, target: Array) -> Array:
    """The same of those who are there, and of the target itself, (2, B + 1)."""
    corner = jnp.vdot(target, target, precision=lax.Precision.HIGHEST)
    own = jnp.full((2, 1), corner.astype(products.dtype))
    return jnp.concatenate([jnp.where(present, products, 0), own], 1)


def squared_lengths(asked: Asked, leaf: AnyLeaf, dtype: Any) -> Array:
    """What is asked for of each row alone: its squared norm, or a bound of it."""
    bound = asked.reads == Reads.NORM_BOUNDS
    return (squared_norm_bounds if bound else verbs.squared_norms)(leaf, dtype)


def over_leaves(asked: Asked, products: list[Any]) -> Any:
    """Products of all leaves summed, or stacked."""
    if asked.per_leaf:
        return jnp.stack(products)
    return sum(products[1:], products[0])


def _of_leaf(asked: Asked, leaf: AnyLeaf, roster: Roster, old: Array | None) -> Any:
    """Inner products of one leaf's rows.

    Arrays at another scale would be held twice on a CPU, so there they are in a branch;
    a GPU or TPU scales them as it reads them, where a branch would hold them twice.
    """
    at_scale = lambda: _products(asked, leaf, roster, old)
    if asked.scale is None or is_outer_product(leaf):
        return at_scale()
    plain = lambda: _products(asked._replace(scale=None), leaf, roster, old)
    return lax.platform_dependent(
        cpu=lambda: lax.cond(jnp.any(asked.scale != 1), at_scale, plain),
        default=at_scale,
    )


def _products(asked: Asked, leaf: AnyLeaf, roster: Roster, old: Array | None) -> Any:
    """Inner products of one leaf's rows, bordered by those with a previous update."""
    dtype, present = roster.weights.dtype, roster.present
    if verbs.has_layers(leaf):  # one at a time: rows may have to be multiplied out
        olds = [] if old is None else [old]
        of_layer = lambda layer, *old: _products(
            asked, layer, roster, old[0] if old else None
        )
        return verbs.over_layers(of_layer, leaf, *olds)
    if asked.scale is not None:
        leaf = verbs.times(leaf, asked.scale)
        # which the program may know to be 0, as at the first step: see `unknown`
        old = None if old is None else lax.optimization_barrier(old) * asked.scale
    if asked.reads.lengths:
        return jnp.where(present, squared_lengths(asked, leaf, dtype), 0)
    if asked.reads == Reads.TOWARD:
        assert old is not None
        return with_target(toward(leaf, old, dtype), present, old)
    pairs = present[:, None] & present[None, :]
    if asked.about is not None:
        one = old is None and isinstance(leaf, OuterProduct)
        if one and not is_table_or_vectors(leaf):
            return jnp.where(pairs, gramian_about(leaf, asked.about, dtype), 0)
        shares = (jnp.arange(present.shape[0]) == asked.about).astype(dtype)
        leaf, center = verbs.centered(leaf, shares, roster.order)
        old = None if old is None else old - center
    elif asked.reads == Reads.SIGNS:
        leaf = verbs.signs(leaf, dtype)
        old = None if old is None else jnp.sign(old)
    gramian = jnp.where(pairs, verbs.gramian(leaf, dtype), 0)
    if old is None:
        return gramian
    side = jnp.where(present, verbs.inner_products(leaf, old), 0)
    return border(gramian, side, old)


def _unpacked(packed: Packed, parts: Sequence[Any]) -> list[Any]:
    """What there is for every packed leaf, arrays or tuples of them, for each leaf."""
    treedef = jax.tree.structure(parts[0])
    arrays = zip(*map(jax.tree.leaves, parts), strict=True)
    by_array = [packed.unpack(list(each)) for each in arrays]
    return [treedef.unflatten(leaf) for leaf in zip(*by_array, strict=True)]
