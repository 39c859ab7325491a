"""Rows merged into statistics: a few in turn on a CPU, all at once elsewhere.

A CPU reduces a leading axis very slowly and holds a carry in its cache; an accelerator
starts a kernel for every operation of every turn, and fuses what is read once. Measured
on one H200, unanimous signs of 32 rows of 256 x 1024 from 64 products each: 0.33 ms in
turn (0.50 where all agree), 0.04 at once; of 64 rows of 1024 x 1024 from one product
each 0.08 (0.47) and 0.12.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._rows.explicit import zeros_as
from consensus_optax._rows.outer_product import (
    Factored,
    OuterProduct,
    contract,
    over_rows,
)
from consensus_optax._rows.statistics import (
    Statistic,
    agreed_in_sign,
    fold_rows,
    halved,
    minmod,
)
from consensus_optax._rows.sums import each_part, total_of, with_held
from consensus_optax._rows.varying import varying_like
from consensus_optax._rows.views import in_lines, row_matrix
from consensus_optax._typing import Array

if TYPE_CHECKING:
    from typing_extensions import TypeIs

# Rows merged per turn on a CPU, so that the carry is read and written once for all: on
# two cores 4 reach memory bandwidth. Rows that are matrix products of their own have to
# be held meanwhile.
_ARRAYS_PER_TURN = 4
_PRODUCTS_PER_TURN = 2
# Entries of products that an accelerator holds at a time.
_ENTRIES = 2**25

Statistics = Sequence[Statistic]


def fold_array(
    stack: Array, statistics: Statistics, weights: Array, order: Array
) -> tuple[Any, ...]:
    """Merged statistics of rows (B, ...); row ``order[i]`` is read for row i."""
    given = (statistics, weights, order)
    return lax.platform_dependent(
        stack,
        cpu=lambda stack: array_in_turn(stack, *given),
        default=lambda stack: array_at_once(stack, *given),
    )


def fold_products(
    leaf: Factored,
    statistics: Statistics,
    weights: Array,
    order: Array,
    matters: Callable[..., Array] | None,
) -> tuple[Any, ...]:
    """The same of products, (M, N) each; see `verbs.fold`."""
    rows = lambda *held: with_held(leaf, held)
    # branches have one type, also of statistics of weights alone
    given = (statistics, varying_like(weights, *leaf.held), order)
    return lax.platform_dependent(
        *leaf.held,
        cpu=lambda *held: products_in_turn(rows(*held), *given, matters),
        tpu=lambda *held: products_if_needed(rows(*held), *given, matters),
        default=lambda *held: products_at_once(rows(*held), *given),
    )


def array_in_turn(
    stack: Array, statistics: Statistics, weights: Array, order: Array
) -> tuple[Any, ...]:
    """Rows one after the other."""
    read = lambda i: stack[order[i]]
    return fold_rows(read, statistics, weights, _ARRAYS_PER_TURN)


def array_at_once(
    stack: Array, statistics: Statistics, weights: Array, order: Array
) -> tuple[Any, ...]:
    """All rows in one reduction, which reads them once."""
    absent = order != jnp.arange(order.shape[0], dtype=order.dtype)
    stand_in = stack[order[jnp.argmax(absent)]]
    mask = absent.reshape(-1, *[1] * (stack.ndim - 1))
    return _merged(jnp.where(mask, stand_in[None], stack), statistics, weights)


def products_in_turn(
    leaf: Factored,
    statistics: Statistics,
    weights: Array,
    order: Array,
    matters: Callable[..., Array] | None = None,
) -> tuple[Any, ...]:
    """Rows multiplied out one after the other, or by short cuts where there are any."""
    if not _of_vectors(leaf):
        row = lambda i: row_matrix(leaf, order[i])
        return fold_rows(row, statistics, weights, _PRODUCTS_PER_TURN)
    a, d = _vectors(leaf, weights, order)
    short = [s.of_products(a, d, weights) for s in statistics if s.of_products]
    others = [statistic for statistic in statistics if not statistic.of_products]
    read = lambda i: a[i][:, None] * d[i][None, :]
    looped: tuple[Any, ...] = ()
    if others:
        loop = lambda: fold_rows(read, others, weights, _ARRAYS_PER_TURN)
        if short and matters:
            needed = jnp.any(matters(*short))
            zeros = lambda _: jnp.zeros_like(short[0])
            nothing = jax.tree.map(zeros, jax.eval_shape(loop))
            looped = lax.cond(needed, loop, lambda: nothing)
        else:
            looped = loop()
    each = {True: iter(short), False: iter(looped)}
    return tuple(next(each[bool(s.of_products)]) for s in statistics)


def products_at_once(
    leaf: Factored, statistics: Statistics, weights: Array, order: Array
) -> tuple[Any, ...]:
    """Blocks of rows multiplied out, as many as fit; products of vectors are fused.

    Sums of products of vectors are matrix products here too; what a CPU may stop early
    costs less than to ask whether it may.
    """
    return _at_once(_in_order(leaf, order), statistics, weights)


def _in_order(leaf: Factored, order: Array) -> Factored:
    """Row ``order[i]`` in place of row i.

    Without the barrier XLA looks rows up anew for every entry that it multiplies out.
    """

    def of_part(part: OuterProduct) -> OuterProduct:
        left = part.left if part.is_shared else part.left[order]
        left, right = lax.optimization_barrier((left, part.right[order]))
        return dataclasses.replace(part, left=left, right=right)

    return each_part(of_part, leaf)


def _at_once(leaf: Factored, statistics: Statistics, weights: Array) -> tuple[Any, ...]:
    """The same of rows in their order."""
    count, (_, m, n) = weights.shape[0], leaf.sides
    is_sum = lambda s: _of_vectors(leaf) and s.of_products and not s.stays_zero
    others = [s for s in statistics if not is_sum(s)]
    length = count if _of_vectors(leaf) else min(count, max(1, _ENTRIES // (m * n)))

    def of_block(first: Any) -> tuple[Any, ...]:
        """Rows from ``first`` on; the last block begins before, with weights of 0."""
        start = jnp.minimum(first, count - length)
        block = lambda x: lax.dynamic_slice_in_dim(x, start, length)
        own = jnp.where(start + jnp.arange(length) >= first, block(weights), 0)

        def of_part(part: OuterProduct) -> Array:
            left = part.left if part.is_shared else block(part.left)
            multiply = functools.partial(contract, part)
            return in_lines(leaf, over_rows(multiply, left, block(part.right)), 1)

        return _merged(total_of(of_part, leaf), others, own)

    def add(block: Any, merged: tuple[Any, ...]) -> tuple[Any, ...]:
        triples = zip(others, merged, of_block(block * length), strict=True)
        return tuple(statistic.merge(x, y) for statistic, x, y in triples)

    reduced: tuple[Any, ...] = ()
    if others:
        reduced = of_block(0) if length == count else of_block(jnp.int32(0))
        reduced = lax.fori_loop(1, -(-count // length), add, reduced)
    queue = iter(reduced)

    def of_statistic(s: Statistic) -> Any:
        if not (_of_vectors(leaf) and s.of_products and is_sum(s)):
            return next(queue)
        a, d = (x[:, 0].astype(weights.dtype) for x in (leaf.left, leaf.right))
        return s.of_products(a, d, weights)

    return tuple(map(of_statistic, statistics))


def products_if_needed(
    leaf: Factored,
    statistics: Statistics,
    weights: Array,
    order: Array,
    matters: Callable[..., Array] | None = None,
) -> tuple[Any, ...]:
    """The same on a TPU, whose units for vectors are slow and which branches cheaply.

    Matrix products tell first whether any coordinate of products of two vectors needs
    more than they tell.
    """
    leaf = _in_order(leaf, order)  # ahead of any branch
    at_once = lambda which: _at_once(leaf, which, weights)
    told = [s for s in statistics if s.of_products and not s.stays_zero]
    others = [s for s in statistics if s not in told]
    signs_tell = [s.merge for s in others] == [minmod]
    if not (_of_vectors(leaf) and others and (signs_tell or (told and matters))):
        return at_once(statistics)
    first = at_once(told)
    if signs_tell:
        a, d = (x[:, 0].astype(weights.dtype) for x in leaf.factors)
        needed = agreed_in_sign(a, d)
    else:
        assert matters
        needed = matters(*first)
    rest = lambda: at_once(others)
    zeros = zeros_as(jax.eval_shape(rest))
    zeros = varying_like(zeros, *leaf.held, weights)
    queues = iter(first), iter(lax.cond(jnp.any(needed), rest, lambda: zeros))
    return tuple(next(queues[s not in told]) for s in statistics)


def _of_vectors(leaf: Factored) -> TypeIs[OuterProduct]:
    """Whether every row is the product of two vectors."""
    one = isinstance(leaf, OuterProduct)
    return one and not leaf.is_look_up and leaf.sides[0] == 1


def _vectors(leaf: OuterProduct, weights: Array, order: Array) -> tuple[Array, Array]:
    """They, (B, M) and (B, N)."""
    a, d = (x[order, 0].astype(weights.dtype) for x in leaf.factors)
    return a, d


def _merged(rows: Array, statistics: Statistics, weights: Array) -> tuple[Any, ...]:
    """Statistics of rows (L, ...), each reduced by itself: XLA fuses what reads alike.

    One reduction of all together is slower on an H200 and holds what it reduces.
    """
    rows = rows.astype(weights.dtype)
    observed = [jax.vmap(s.observe)(rows, weights) for s in statistics]
    pairs = zip(statistics, observed, strict=True)
    return tuple(_reduced(statistic.merge, values) for statistic, values in pairs)


def _reduced(merge: Callable[[Any, Any], Any], values: Any) -> Any:
    """Values merged along their leading axis."""
    known = {jnp.add: jnp.sum, jnp.minimum: jnp.min, jnp.maximum: jnp.max}
    if merge in known:
        return known[merge](values, 0)
    if merge is minmod:
        low, high = values.min(0), values.max(0)
        return jnp.where(low > 0, low, jnp.where(high < 0, high, 0))
    return halved(values, merge)
