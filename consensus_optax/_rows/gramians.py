"""Inner products of all pairs of rows, for rows as arrays and as factors.

XLA on CPU multiplies a short and very wide matrix by its transpose several times
slower than the same in chunks that stay in the cache, and rows multiplied out chunk by
chunk never fill memory. Other devices get few, large products.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from consensus_optax._rows.layers import sum_of_layers
from consensus_optax._rows.outer_product import (
    Factored,
    OuterProduct,
    contract,
    is_outer_product,
    over_rows,
)
from consensus_optax._rows.parts import cross_products, of_both
from consensus_optax._rows.sums import SumOfProducts, each_part
from consensus_optax._rows.varying import varying_like
from consensus_optax._typing import Array

# Measured on two CPU cores: 64 x 1M in 62 ms instead of 420, and 32 rows of 256 x 1024
# from their factors in 12 ms instead of 52.
_COLUMNS = 8192  # of a stack multiplied at a time
_ENTRIES = 2**19  # of rows multiplied out at a time
# On one H200 the latter take 0.06 ms at once and 0.30 in such blocks.
_ENTRIES_ELSEWHERE = 2**25


def flat(leaf: Array, dtype: Any) -> Array:
    """An array leaf as a matrix (B, P) in the dtype of decisions."""
    return leaf.reshape(leaf.shape[0], -1).astype(dtype)


def cross_gramian(x: Array | Factored, y: Array | Factored, dtype: Any) -> Array:
    """Inner products of the rows of two leaves of one parameter, (B, C).

    Of factored rows by T x T products of factors or by multiplying the leaf out, a
    block at a time, whichever takes fewer operations; one layer after the other.
    """
    factored = is_outer_product(x) and is_outer_product(y)
    if factored and x.num_layers is not None:
        of_layer = lambda *both: cross_gramian(both[0], both[-1], dtype)
        return sum_of_layers(of_layer, *((x,) if y is x else (x, y)))
    if isinstance(x, SumOfProducts) and isinstance(y, SumOfProducts):
        return _of_sums(x, y, dtype)
    factored = isinstance(x, OuterProduct) and isinstance(y, OuterProduct)
    if factored and y is x and x.is_shared and not x.is_look_up:
        return _of_one_left(x, dtype)
    if factored and not x.is_look_up and not y.is_look_up:
        (t, m, n), b = x.sides, x.shape[0]
        if b * t * t * (m + n) > t * m * n + b * m * n:
            return _multiplied_out(x, y, dtype)
    if factored and x.is_look_up == y.is_look_up and not _is_small_table(x):
        left, right = factor_products(x, y, "bsx,ctx->bcst", dtype)
        return of_both(left, right).sum((2, 3))
    wide = lambda z: dataclasses.replace(z, dtype=np.dtype(dtype))
    multiply = lambda z: each_part(wide, z).materialize()
    arrays = [multiply(z) if is_outer_product(z) else z for z in (x, y)]
    return _wide_product(*(flat(z, dtype) for z in arrays))


def _of_sums(x: SumOfProducts, y: SumOfProducts, dtype: Any) -> Array:
    """Of two sums of as many parts, of all pairs of these."""
    same = [cross_gramian(p, q, dtype) for p, q in zip(x.parts, y.parts, strict=True)]
    total = functools.reduce(jnp.add, same)
    for i, j in itertools.combinations(range(len(x.parts)), 2):
        one = cross_products(x.parts[i], y.parts[j], dtype)
        both = one.T if y is x else cross_products(x.parts[j], y.parts[i], dtype)
        total += one + both
    return total


def _multiplied_out(x: OuterProduct, y: OuterProduct, dtype: Any) -> Array:
    return lax.platform_dependent(
        cpu=lambda: multiplied_out(x, y, dtype, _ENTRIES),
        default=lambda: multiplied_out(x, y, dtype, _ENTRIES_ELSEWHERE),
    )


def _of_one_left(x: OuterProduct, dtype: Any) -> Array:
    r"""The Gramian of rows that share their left factor, (B, B).

    ``d_i . (S d_j)`` with S, (T, T), the inner products of the left factor's terms.
    """
    (t, m, n), b = x.sides, x.shape[0]
    if t * t * (m + b * n) + b * b * t * n > b * t * m * n + b * b * m * n:
        return _multiplied_out(x, x, dtype)
    left, right = x.left[0].astype(dtype), x.right.astype(dtype)

    def inner(pairs: str, *factors: Array) -> Array:
        return _decided(x, functools.partial(jnp.einsum, pairs), *factors)

    terms = inner("sm,tm->st", left, left)
    return inner("bsn,csn->bc", right, inner("st,ctn->csn", terms, right))


def factor_products(
    x: OuterProduct, y: OuterProduct, pairs: str, dtype: Any
) -> tuple[Array, Array]:
    """Inner products of pairs of left factors, and of the same pairs of right factors.

    Those of look-ups are 1 where two indices are equal.
    """
    inner = functools.partial(_decided, x, functools.partial(jnp.einsum, pairs))
    right = inner(x.right.astype(dtype), y.right.astype(dtype))
    if not x.is_look_up:
        return inner(x.left.astype(dtype), y.left.astype(dtype)), right
    ours, theirs = x.left[..., :, None], y.left[..., None, :]  # (B, T, 1), (C, 1, T)
    valid = (ours >= 0) & (ours < x.row_shape[0])
    if pairs.endswith("->bst"):
        same = valid & (ours == theirs)  # (B, T, T)
    else:
        same = valid[:, None] & (ours[:, None] == theirs[None])  # (B, C, T, T)
    return jnp.where(same, 1, 0).astype(dtype), right


def _is_small_table(x: OuterProduct) -> bool:
    """Whether rows of a looked-up table are smaller than products of their terms."""
    (terms, m, n), b = x.sides, x.shape[0]
    return m < terms * terms and m * n <= 2 * b * terms * terms


def is_table_or_vectors(x: OuterProduct) -> bool:
    """Whether rows are multiplied out without a matrix product."""
    return x.is_look_up or x.sides[0] == 1


def _decided(x: OuterProduct, product: Callable[..., Array], *operands: Array) -> Array:
    """A product that decides, of the factors or of rows that they multiply to.

    At the highest precision: on a TPU six passes in bfloat16. Where the model's own
    products took one, entries are off by 2^-9 before anything is decided, and three
    passes, which are off by 2^-16, tell as much. Only there: look-ups and products of
    two vectors are multiplied out without a matrix product.
    """
    highest = functools.partial(product, precision=lax.Precision.HIGHEST)
    given = x.precision if isinstance(x.precision, tuple) else (x.precision,)
    by_default = all(each in (None, lax.Precision.DEFAULT) for each in given)
    if is_table_or_vectors(x) or not by_default:
        return highest(*operands)
    high = functools.partial(product, precision=lax.Precision.HIGH)
    return lax.platform_dependent(*operands, tpu=high, default=highest)


def _wide_product(rows: Array, others: Array) -> Array:
    """(B, P) times the transpose of (C, P)."""
    if rows.shape[1] < 2 * _COLUMNS:
        return in_one_product(rows, others)
    return lax.platform_dependent(rows, others, cpu=in_chunks, default=in_one_product)


def in_one_product(rows: Array, others: Array) -> Array:
    """The same, as every device but a CPU does it."""
    return jnp.matmul(rows, others.T, precision=lax.Precision.HIGHEST)


def in_chunks(rows: Array, others: Array) -> Array:
    """The same, of rows that are wide, a chunk of their columns at a time."""

    def add(index: Any, total: Array) -> Array:
        part = lambda z: lax.dynamic_slice_in_dim(z, index * _COLUMNS, _COLUMNS, 1)
        return total + in_one_product(part(rows), part(others))

    count = rows.shape[1] // _COLUMNS
    rest = lambda z: z[:, count * _COLUMNS :]
    start = in_one_product(rest(rows), rest(others))
    return lax.fori_loop(0, count, add, start)


def multiplied_out(
    x: OuterProduct,
    y: OuterProduct,
    dtype: Any,
    entries: int,
    about: Array | None = None,
) -> Array:
    """The same from rows multiplied out, a block of their left side at a time.

    Less row ``about``, if there is one.
    """

    def product(ours: Array, theirs: Array) -> Array:
        if about is not None:
            ours, theirs = (z - z[about][None] for z in (ours, theirs))
        return lax.platform_dependent(
            *(ours, theirs),
            tpu=functools.partial(line_by_line, x),
            default=functools.partial(as_one_line, x),
        )

    return _over_blocks(product, x, y, dtype, entries)


def as_one_line(x: OuterProduct, ours: Array, theirs: Array) -> Array:
    """Inner products of rows (B, m, N) and (C, m, N) that x multiplies to, (B, C)."""
    rows, others = (flat(z, z.dtype) for z in (ours, theirs))
    return _decided(x, jnp.matmul, rows, others.T)


def line_by_line(x: OuterProduct, ours: Array, theirs: Array) -> Array:
    """The same, summed over the m lines, as a TPU does it.

    Of 32 rows of 256 x 1024, three passes, its compiler makes 86,000 bundles of
    instructions instead of 135,000.
    """
    return _decided(x, functools.partial(jnp.einsum, "bmn,cmn->mbc"), ours, theirs).sum(
        0
    )


def squares(x: OuterProduct, dtype: Any) -> Array:
    """Squared norms of rows of matrices, (B,), from rows multiplied out in blocks.

    Of look-ups row by row.
    """
    if x.is_look_up:
        square = lambda row: jnp.vdot(row, row, precision=lax.Precision.HIGHEST)
        row = lambda factors: square(contract(x, *factors).astype(dtype))
        return lax.map(row, x.factors)
    inner = functools.partial(jnp.einsum, "bp,bp->b", precision=lax.Precision.HIGHEST)
    of_rows = lambda rows, _: inner(flat(rows, dtype), flat(rows, dtype))
    in_blocks = lambda entries: lambda: _over_blocks(of_rows, x, x, dtype, entries)
    cpu, other = map(in_blocks, (_ENTRIES, _ENTRIES_ELSEWHERE))
    return lax.platform_dependent(cpu=cpu, default=other)


def gramian_about(x: OuterProduct, about: Array, dtype: Any) -> Array:
    """Inner products of the rows of matrices, less row ``about`` of them, (B, B)."""
    given = functools.partial(multiplied_out, x, x, dtype, about=about)
    return lax.platform_dependent(
        cpu=lambda: given(entries=_ENTRIES),
        default=lambda: given(entries=_ENTRIES_ELSEWHERE),
    )


def _over_blocks(
    function: Callable[[Array, Array], Array],
    x: OuterProduct,
    y: OuterProduct,
    dtype: Any,
    entries: int,
) -> Array:
    """function(lines of x's rows, the same of y's), summed over blocks of lines.

    Lines are (B, size, N).
    """
    terms, m, n = x.sides
    blocks = math.ceil(x.shape[0] * m * n / entries)
    size = math.ceil(m / blocks)
    blocks = math.ceil(m / size)
    # lines of zeros add nothing
    fill = ((0, 0), (0, 0), (0, blocks * size - m))

    def parts(z: OuterProduct) -> Array:  # (blocks, B, T, size)
        split = jnp.pad(z.left, fill).reshape(-1, terms, blocks, size)
        return split.transpose(2, 0, 1, 3)

    def rows(left: Array, right: Array) -> Array:  # (B, size, N)
        product = functools.partial(
            *(jnp.einsum, "tm,tn->mn"),
            precision=x.precision,
            preferred_element_type=dtype,
        )
        return over_rows(product, left, right)

    def of_block(left: tuple[Array, Array]) -> Array:
        ours = rows(left[0], x.right)
        return function(ours, ours if y is x else rows(left[1], y.right))

    def add(total: Array, left: tuple[Array, Array]) -> tuple[Array, None]:
        return total + of_block(left), None

    both = (parts(x), parts(x) if y is x else parts(y))
    first = jax.eval_shape(of_block, jax.tree.map(lambda z: z[0], both))
    zeros = varying_like(jnp.zeros(first.shape, first.dtype), x, y)
    return lax.scan(add, zeros, both)[0]


def border(gramian: Array, side: Array, previous: Array) -> Array:
    """A Gramian with one row more, whose products with the others are ``side``."""
    corner = jnp.vdot(previous, previous, precision=lax.Precision.HIGHEST)
    top = jnp.concatenate([gramian, side[:, None]], 1)
    return jnp.concatenate([top, jnp.append(side, corner)[None]], 0)
