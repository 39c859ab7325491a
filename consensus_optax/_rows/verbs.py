"""All algebra on leaves with an example axis, for every kind of leaf.

A leaf is an array (B, *shape), an :class:`OuterProduct`, perhaps of many layers, or
:class:`Mixed` rows of one of these. Everything above this file is written in these few
verbs, so a fourth kind of leaf would be taught here alone.
What depends on the values of all rows runs in float32 at least, whatever their dtype.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._rows.folding import fold_array, fold_products
from consensus_optax._rows.gramians import cross_gramian, factor_products, flat, squares
from consensus_optax._rows.layers import each_layer, sum_of_layers
from consensus_optax._rows.outer_product import (
    Factored,
    OuterProduct,
    contract,
    is_outer_product,
    restored,
)
from consensus_optax._rows.parts import of_both, own_products, projected
from consensus_optax._rows.statistics import WEIGHTED_SUM, Statistic
from consensus_optax._rows.sums import SumOfProducts, each_part, total_of
from consensus_optax._rows.views import as_matrix
from consensus_optax._typing import Array


class Mixed(NamedTuple):
    """Rows that are combinations of other rows, B' of B, not yet computed.

    Attributes:
      matrix: (B', B), zero in the columns of absent rows.
      leaf: the rows combined.
      order: (B,), see :attr:`Roster.order`.
    """

    matrix: Array
    leaf: Any
    order: Array


Leaf = Array | Factored  # as gradients come
AnyLeaf = Leaf | Mixed  # as rules read them


def decision_dtype(*trees: Any) -> Any:
    """The dtype in which rules decide: float64 if any leaf is, else float32."""
    leaves = jax.tree.leaves(trees)
    wide = any(getattr(leaf, "dtype", None) == jnp.float64 for leaf in leaves)
    return jnp.dtype("float64") if wide else jnp.dtype("float32")


# Products of numbers that decide have all digits, on accelerators too.
_product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def scale(leaf: AnyLeaf, factors: Array) -> Any:
    """Row i times factors[i], in the dtype of these: nothing is rounded to a narrower.

    Of a product one factor is scaled, whatever its size.
    """
    if isinstance(leaf, Mixed):
        return leaf._replace(matrix=leaf.matrix * factors[:, None])
    if isinstance(leaf, SumOfProducts):
        return each_part(lambda part: scale(part, factors), leaf)
    if isinstance(leaf, OuterProduct):
        may = not (leaf.is_look_up or leaf.is_shared)
        side = "left" if may and leaf.left.size <= leaf.right.size else "right"
        scaled: Any = _scaled(getattr(leaf, side), factors)
        return dataclasses.replace(leaf, **{side: scaled})
    return _scaled(leaf, factors)


def times(leaf: AnyLeaf, factor: Array) -> AnyLeaf:
    """All rows times one number, or row i times factor[i], in its dtype.

    Of a product the left factors are brought to about 1 first, of each row by a power
    of two, for which the right ones make up: squares of factors are floats where that
    of the row is one, whichever of the two is large or small.
    """
    if isinstance(leaf, Mixed):
        if factor.ndim:
            return scale(leaf, factor)
        return leaf._replace(leaf=times(leaf.leaf, factor))
    if isinstance(leaf, SumOfProducts):
        return each_part(lambda part: times(part, factor), leaf)
    if isinstance(leaf, OuterProduct):
        left, dtype = leaf.left, factor.dtype
        if not leaf.is_look_up:
            share = _about_one(largest_entries(left, dtype), factor)
            left, factor = _scaled(left, share), factor / share
        right = _scaled(leaf.right, factor)
        return dataclasses.replace(leaf, left=left, right=right, dtype=dtype)
    return _scaled(leaf, factor)


def largest_entries(factor: Array, dtype: Any) -> Array:
    """Of every term, (B, T)."""
    if jax.debug_nans.value:  # infinity times 0 would stop it
        factor = jnp.where(jnp.isfinite(factor), factor, 0)
    return jnp.abs(factor).max(-1).astype(dtype)


def _about_one(largest: Array, whole: Array) -> Array:
    """Powers of two, (B,), that bring rows of entries up to these, (B, T), to about 1.

    1 for rows of zeros and those that are not finite; ``whole`` over them is a float.
    """
    largest = largest.max(tuple(range(1, largest.ndim)))
    known = jnp.isfinite(largest) & (largest > 0)
    _, exponent = jnp.frexp(jnp.where(known, largest, 1))
    _, of_whole = jnp.frexp(whole)
    reach = jnp.finfo(largest.dtype).maxexp - 8
    exponent = jnp.clip(exponent, -reach - of_whole, reach - of_whole)
    return jnp.ldexp(jnp.ones_like(largest), -jnp.clip(exponent, -reach, reach))


def _scaled(rows: Array, factors: Array) -> Array:
    """The same of an array, in the dtype of the factors."""
    if factors.ndim:
        factors = factors.reshape(-1, *[1] * (rows.ndim - 1))
    return rows.astype(factors.dtype) * factors


def has_layers(leaf: AnyLeaf) -> bool:
    """Whether a leaf is of products, or mixed of them, with an axis of layers."""
    whole = leaf.leaf if isinstance(leaf, Mixed) else leaf
    return is_outer_product(whole) and whole.num_layers is not None


def over_layers(function: Callable[..., Any], leaf: Any, *directions: Array) -> Any:
    """A function of one layer's rows, and of directions', summed over the layers."""
    whole, part = _taken_apart(leaf)
    of_layer = lambda layer, *parts: function(part(layer), *parts)
    matrices = [as_matrix(whole, each) for each in directions]
    return sum_of_layers(of_layer, whole, *matrices)


def _by_layer(function: Callable[..., Any], leaf: Any) -> Any:
    """A function of one layer's rows to matrices; those of all, in parameter shape."""
    whole, part = _taken_apart(leaf)
    merged = each_layer(lambda layer: function(part(layer)), whole)
    return jax.tree.map(functools.partial(restored, whole), merged)


def _taken_apart(leaf: Any) -> tuple[Factored, Callable[[Factored], AnyLeaf]]:
    """The products of all layers, and what makes a leaf like this one of one layer."""
    if isinstance(leaf, Mixed):
        return leaf.leaf, lambda layer: leaf._replace(leaf=layer)
    return leaf, lambda layer: layer


def squared_norms(leaf: AnyLeaf, dtype: Any) -> Array:
    """Squared Euclidean norm of every row, (B,)."""
    if has_layers(leaf):
        return over_layers(lambda layer: squared_norms(layer, dtype), leaf)
    if isinstance(leaf, Mixed):
        return gramian(leaf, dtype).diagonal()
    if isinstance(leaf, SumOfProducts):
        total = total_of(lambda part: squared_norms(part, dtype), leaf)
        for x, y in itertools.combinations(leaf.parts, 2):
            total += 2 * own_products(x, y, dtype)
        return jnp.maximum(total, 0)  # of parts that cancel
    if isinstance(leaf, OuterProduct):
        if leaf.is_one_array:
            numbers, array = leaf.right[:, 0, 0].astype(dtype), leaf.left.astype(dtype)
            return of_both(numbers * numbers, jnp.sum(array * array))
        terms, m, n = leaf.sides
        if terms * (m + n) <= m * n:  # flops of T x T products against those of the row
            left, right = factor_products(leaf, leaf, "bsx,btx->bst", dtype)
            return of_both(left, right).sum((1, 2))
        return squares(leaf, dtype)
    rows = flat(leaf, dtype)
    return _product(rows * rows, jnp.ones(rows.shape[1], dtype))


def gramian(leaf: AnyLeaf, dtype: Any) -> Array:
    """Inner products of all pairs of rows, (B, B), at the highest precision."""
    if isinstance(leaf, Mixed):
        used = jnp.any(leaf.matrix != 0, 0)
        inner = jnp.where(used[:, None] & used[None, :], gramian(leaf.leaf, dtype), 0)
        return _product(_product(leaf.matrix, inner), leaf.matrix.T)
    return cross_gramian(leaf, leaf, dtype)


def combine(leaf: AnyLeaf, weights: Array, order: Array) -> Array:
    """sum_i weights[i] row_i, in parameter shape; rows of weight 0 are never read.

    Such a row is replaced by row ``order[i]``, a sound one: 0 times nan is nan.
    """
    dtype = weights.dtype
    if has_layers(leaf):
        return _by_layer(lambda layer: combine(layer, weights, order), leaf)
    if isinstance(leaf, Mixed):
        return combine(leaf.leaf, _product(weights, leaf.matrix), leaf.order)
    if isinstance(leaf, SumOfProducts):
        return total_of(lambda part: combine(part, weights, order), leaf)
    if isinstance(leaf, OuterProduct):
        keep = (weights != 0)[:, None, None]
        d = jnp.where(keep, leaf.right.astype(dtype) * weights[:, None, None], 0)
        a = leaf.left
        if leaf.is_shared:  # the sum of the rows has one product, too
            d, keep = d.sum(0, keepdims=True), keep.any(0, keepdims=True)
        if not leaf.is_look_up:
            a = jnp.where(keep, a.astype(dtype), 0)
        all_terms = lambda factor: factor.reshape(-1, *factor.shape[2:])
        return restored(leaf, contract(leaf, all_terms(a), all_terms(d)))
    combined = fold(leaf, (WEIGHTED_SUM,), weights, order)[0]
    return jnp.where(jnp.any(weights != 0), combined, 0)  # there may be no sound row


def fold(
    leaf: AnyLeaf,
    statistics: Sequence[Statistic],
    weights: Array,
    order: Array,
    matters: Callable[..., Array] | None = None,
) -> tuple[Any, ...]:
    """Statistics of all rows merged, each in parameter shape, never a second stack.

    Row ``order[i]`` is read with weight ``weights[i]``: an absent row i has weight 0
    and points to a present row, whose copy changes no statistic. Of products of two
    vectors, statistics without a short cut are left out if ``matters`` of the others
    says that they matter nowhere.
    """
    if has_layers(leaf):
        of_layer = lambda layer: fold(layer, statistics, weights, order, matters)
        return _by_layer(of_layer, leaf)
    if isinstance(leaf, Mixed):
        leaf = as_array(leaf, weights.dtype)
    if not is_outer_product(leaf):
        return fold_array(leaf, statistics, weights, order)
    merged = fold_products(leaf, statistics, weights, order, matters)
    return jax.tree.map(functools.partial(restored, leaf), merged)


def as_array(leaf: AnyLeaf, dtype: Any) -> Array:
    """The rows multiplied out and mixed, (B, *shape)."""
    if isinstance(leaf, Mixed):
        used = jnp.any(leaf.matrix != 0, 0)
        rows = present_rows(leaf.leaf, used, dtype)
        return jnp.tensordot(leaf.matrix, rows, 1, precision=lax.Precision.HIGHEST)
    return (leaf.materialize() if is_outer_product(leaf) else leaf).astype(dtype)


def present_rows(leaf: AnyLeaf, present: Array, dtype: Any) -> Array:
    """The rows multiplied out, (B, *shape), with zeros for the absent ones."""
    rows = as_array(leaf, dtype)
    return jnp.where(present.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0)


def inner_products(leaf: AnyLeaf, direction: Array) -> Array:
    """Inner product of every row with one array of parameter shape, (B,)."""
    dtype = direction.dtype
    if has_layers(leaf):
        return over_layers(inner_products, leaf, direction)
    if isinstance(leaf, Mixed):
        used = jnp.any(leaf.matrix != 0, 0)
        own = jnp.where(used, inner_products(leaf.leaf, direction), 0)
        return _product(leaf.matrix, own)
    if is_outer_product(leaf):
        of_part = lambda part: projected(part, as_matrix(part, direction))
        return total_of(of_part, leaf)
    return _product(flat(leaf, dtype), direction.reshape(-1))


def centered(leaf: AnyLeaf, shares: Array, order: Array) -> tuple[Array, Array]:
    """Rows less their mean weighted by ``shares``, multiplied out, and that mean.

    An outer product less a mean is none, and inner products of nearly equal rows lose
    every digit when the mean is taken off them afterwards.
    """
    center = combine(leaf, shares, order)
    return as_array(leaf, shares.dtype) - center[None], center


def signs(leaf: AnyLeaf, dtype: Any) -> Leaf:
    """Signs of the rows; of products of two vectors they are products again."""
    known = isinstance(leaf, OuterProduct)
    if known and not leaf.is_look_up and leaf.sides[0] == 1:
        left, right = jnp.sign(leaf.left), jnp.sign(leaf.right)
        return dataclasses.replace(leaf, left=left, right=right)
    return jnp.sign(as_array(leaf, dtype))
