"""Statistics of rows that merge in any order: what folds are made of.

A statistic looks at one row at a time and coordinate by coordinate, so it can be taken
while rows stream by: over a batch, over microbatches, over devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._typing import Array


class Statistic(NamedTuple):
    """One statistic per coordinate.

    Attributes:
      observe: (row, weight) to an array of the row's shape, or to a tuple of such
        arrays that can only be merged together. ``weight`` has shape ().
        A second copy of a row with weight 0 must not change the merged statistic:
        either the result is proportional to the weight or ``merge(x, x) == x``.
      merge: associative and commutative function of two such observations.
      stays_zero: whether a zero can no longer change, so that a fold may stop once
        nothing else is left.
      of_signs: whether only the sign of a row's entry matters.
      of_products: optional short cut to the merged statistic of rows that are products
        of two vectors: (a, d, weights) of shapes (B, M), (B, N), (B,) to (M, N).
    """

    observe: Callable[[Array, Array], Any]
    merge: Callable[[Any, Any], Any]
    stays_zero: bool = False
    of_signs: bool = False
    of_products: Callable[[Array, Array, Array], Array] | None = None


def fold_rows(
    read: Callable[[Any], Array],
    statistics: Sequence[Statistic],
    weights: Array,
    rows_per_turn: int,
    start: tuple[Any, ...] | None = None,
    needed: Array | None = None,
) -> tuple[Any, ...]:
    """Merged statistics of rows ``read(0), ..., read(B - 1)``, one carry for each.

    ``start`` stands for the statistics of row 0 if they are known. If ``needed`` is
    False no further row is read and that is the result.

    XLA on CPU reduces a leading axis very slowly; a loop with a carry runs at memory
    bandwidth, and several rows per turn save reading and writing the carry.
    """
    count = weights.shape[0]

    def observe(i: Any) -> tuple[Any, ...]:
        # past the end row 0 stands in, with weight 0
        there = i < count
        row = read(jnp.where(there, i, 0)).astype(weights.dtype)
        weight = jnp.where(there, weights[jnp.where(there, i, 0)], 0)
        return tuple(statistic.observe(row, weight) for statistic in statistics)

    def merge(x: tuple[Any, ...], y: tuple[Any, ...]) -> tuple[Any, ...]:
        pairs = zip(statistics, x, y, strict=True)
        return tuple(statistic.merge(p, q) for statistic, p, q in pairs)

    start = observe(0) if start is None else start
    length = min(rows_per_turn, count - 1)
    if not length:
        return start
    turns = -(-(count - 1) // length)
    if needed is not None:
        turns = jnp.where(needed, turns, 0)

    def step(turn: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        several = [observe(1 + turn * length + k) for k in range(length)]
        return functools.reduce(merge, several, carry)

    if not all(statistic.stays_zero for statistic in statistics):
        first = 0 if needed is None else turns - turns  # varies over devices as it does
        return lax.fori_loop(first, turns, step, start)

    def goes_on(state: tuple[Array, tuple[Any, ...]]) -> Array:
        # a sum runs twice as fast as jnp.any on CPU
        alive = sum(jnp.abs(carry).sum() for carry in jax.tree.leaves(state[1]))
        return (state[0] < turns) & (alive > 0)

    body = lambda state: (state[0] + 1, step(*state))
    return lax.while_loop(goes_on, body, (jnp.zeros((), jnp.int32), start))[1]


def halved(values: Any, merge: Callable[[Any, Any], Any]) -> Any:
    """Merges along the leading axis, upper half with lower half, until one is left."""
    while (count := jax.tree.leaves(values)[0].shape[0]) > 1:
        half = count // 2
        merged = merge(_cut(values, 0, half), _cut(values, half, half))
        odd = _cut(values, count - count % 2, count % 2)
        values = jax.tree.map(lambda *both: jnp.concatenate(both), merged, odd)
    return jax.tree.map(lambda x: x[0], values)


def _cut(values: Any, start: int, length: int) -> Any:
    return jax.tree.map(lambda x: x[start : start + length], values)


def merge_present(
    merge: Callable[[Any, Any], Any], x: Any, y: Any, has_x: Any, has_y: Any
) -> Any:
    """Merges two statistics, of which one of no rows holds nothing that may count."""
    pick = lambda both, x, y: jnp.where(has_x & has_y, both, jnp.where(has_x, x, y))
    return jax.tree.map(pick, merge(x, y), x, y)


def merge_lots(merge: Callable[[Any, Any], Any], values: Any, present: Array) -> Any:
    """What (N,) lots of rows gave, along the leading axis, of those that have any."""

    def pair(x: Any, y: Any) -> Any:
        lead = lambda has: has.reshape(-1, *[1] * (jax.tree.leaves(x[0])[0].ndim - 1))
        return merge_present(merge, x[0], y[0], lead(x[1]), lead(y[1])), x[1] | y[1]

    return halved((values, present), pair)[0]


def merge_leaves(
    statistics: Sequence[Statistic], x: Any, y: Any, has_x: Any, has_y: Any
) -> list[list[Any]]:
    """The same of every statistic in every leaf."""

    def merge(each: Statistic, of_x: Any, of_y: Any) -> list[Any]:
        pairs = zip(of_x, of_y, strict=True)
        return [merge_present(each.merge, p, q, has_x, has_y) for p, q in pairs]

    return [merge(*each) for each in zip(statistics, x, y, strict=True)]


def merge_moments(
    x: tuple[Array, Array, Array], y: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """Weights, means and sums of squared deviations of two lots of rows together.

    Chan, Golub and LeVeque 1979: no difference of large sums, so that nearly equal rows
    keep their variance.
    """
    total, apart = x[0] + y[0], y[1] - x[1]
    share = jnp.where(y[0] > 0, y[0] / jnp.where(total > 0, total, 1), 0)
    mean = jnp.where(x[0] > 0, x[1] + share * apart, y[1])
    return total, mean, x[2] + y[2] + apart * apart * share * x[0]


def minmod(x: Array, y: Array) -> Array:
    """The smaller in magnitude where both have one sign, else 0.

    Associative and commutative, which the pair (min, max) is not needed for.

    Args:
      x: array.
      y: array of the same shape.

    Returns:
      Array of that shape.

    Examples:
      >>> import jax.numpy as jnp
      >>> minmod(jnp.array([1., -1., 2.]), jnp.array([3., 2., -1.])).tolist()
      [1.0, 0.0, 0.0]
    """
    return jnp.clip(y, jnp.minimum(x, 0), jnp.maximum(x, 0))


def _matmul(x: Array, y: Array) -> Array:
    return jnp.matmul(x.T, y, precision=lax.Precision.HIGHEST)


def _by_sign(
    up: Callable[[Array], Array], down: Callable[[Array], Array], same: bool
) -> Callable[[Array, Array, Array], Array]:
    """Sum over rows of a function of products that tells the signs of the factors.

    A product is positive where both factors are positive or both negative: a matrix
    product of twice the depth, instead of B passes over (M, N).
    """

    def merged(a: Array, d: Array, weights: Array) -> Array:
        left = jnp.concatenate([up(a), down(a)])
        right = jnp.concatenate([up(d), down(d)] if same else [down(d), up(d)])
        return _matmul(left * jnp.tile(weights, 2)[:, None], right)

    return merged


def agreed_in_sign(a: Array, d: Array) -> Array:
    """Where all products a_i d_i of two vectors have one sign, not zero, (M, N) bool.

    Signs are exact in every precision, and so are their sums.
    """
    agreement = jnp.matmul(jnp.sign(a).T, jnp.sign(d), precision=lax.Precision.DEFAULT)
    return jnp.abs(agreement) == a.shape[0]


def _minmod_of_products(a: Array, d: Array, weights: Array) -> Array:
    """Minmod over rows a_i d_i, which costs little where nothing is agreed on.

    All rows agree in sign exactly where the sum of products of signs is plus or minus
    B, which one matrix product tells. Magnitudes are looked at if that is so anywhere.
    """
    agreed = agreed_in_sign(a, d)
    least = Statistic(lambda g, w: g, jnp.minimum)
    size_a, size_d = jnp.abs(a), jnp.abs(d)
    read = lambda i: size_a[i][:, None] * size_d[i][None, :]
    first = jnp.where(agreed, read(0), 0)
    (magnitude,) = fold_rows(read, (least,), weights, 4, (first,), jnp.any(agreed))
    # where all agree, they do so with row 0: no need to hold ``agreement`` until here
    return magnitude * jnp.sign(a[0])[:, None] * jnp.sign(d[0])[None, :]


def _squares_of_products(a: Array, d: Array, weights: Array) -> Array:
    """Weighted sum of the squares of products, of factors of about one size.

    Else squares of one would be lost, and of the other too large, of a product that is
    neither.
    """
    size = lambda x: jnp.log2(positive(jnp.abs(x).max(1, keepdims=True)))
    positive = lambda x: jnp.where(x > 0, x, 1)
    shift = jnp.exp2(jnp.round((size(d) - size(a)) / 2))  # exact
    left, right = a * shift, d / shift
    return _matmul(left * left * weights[:, None], right * right)


_nonzero = lambda x: (x != 0).astype(x.dtype)
_up = lambda x: jnp.maximum(x, 0)
_down = lambda x: jnp.minimum(x, 0)

WEIGHTED_SUM = Statistic(
    lambda g, w: w * g,
    jnp.add,
    of_products=lambda a, d, w: _matmul(a * w[:, None], d),
)
WEIGHTED_SQUARE = Statistic(
    lambda g, w: w * (g * g), jnp.add, of_products=_squares_of_products
)
MOMENTS = Statistic(
    lambda g, w: (jnp.broadcast_to(w, g.shape), g, jnp.zeros_like(g)), merge_moments
)
WEIGHTED_SIGN = Statistic(
    lambda g, w: w * jnp.sign(g),
    jnp.add,
    of_signs=True,
    of_products=lambda a, d, w: _matmul(jnp.sign(a) * w[:, None], jnp.sign(d)),
)
WEIGHTED_MAGNITUDE = Statistic(
    lambda g, w: w * jnp.abs(g),
    jnp.add,
    of_products=lambda a, d, w: _matmul(jnp.abs(a) * w[:, None], jnp.abs(d)),
)
NONZERO_WEIGHT = Statistic(
    lambda g, w: jnp.where(g != 0, w, 0),
    jnp.add,
    of_signs=True,
    of_products=lambda a, d, w: _matmul(_nonzero(a) * w[:, None], _nonzero(d)),
)
POSITIVE_SUM = Statistic(
    lambda g, w: w * _up(g), jnp.add, of_products=_by_sign(_up, _down, same=True)
)
NEGATIVE_SUM = Statistic(
    lambda g, w: w * _down(g), jnp.add, of_products=_by_sign(_up, _down, same=False)
)
SMALLEST_POSITIVE = Statistic(lambda g, w: jnp.where(g > 0, g, jnp.inf), jnp.minimum)
LARGEST_NEGATIVE = Statistic(lambda g, w: jnp.where(g < 0, g, -jnp.inf), jnp.maximum)
LOG_MAGNITUDE = Statistic(lambda g, w: w * jnp.log(jnp.abs(g) + 1e-10), jnp.add)
MINMOD = Statistic(
    lambda g, w: g, minmod, stays_zero=True, of_products=_minmod_of_products
)
