"""Matrices as products of two thin ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._rows.addition import one_product
from consensus_optax._rows.outer_product import (
    Factored,
    OuterProduct,
    is_outer_product,
)
from consensus_optax._rows.sums import SumOfProducts
from consensus_optax._rows.views import unshared
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._typing import Array
from consensus_optax.compressors._compressor import Compressor, Shape

Map = Callable[[Array], Array]


def low_rank(rank: int, key: Array, *, num_iterations: int = 1) -> Compressor:
    r"""Sends a matrix as a product of two of ``rank`` columns, by subspace iteration.

    Also known as: PowerSGD, rank-r approximation.

    .. math:: P = \operatorname{orth}(M Q_0), \qquad C(M) = P (M^\top P)^\top

    with :math:`Q_0` drawn anew for every message, on the smaller side of M. A kernel
    (..., N) is the matrix of its last axis and all others. Rows that are factored are
    never multiplied out, and what is made of rows is factored again: an
    :class:`OuterProduct` of ``rank`` terms in, for any reducer. Vectors, and matrices
    that are less to send as they are, stay as they are; so do outer products of no more
    than ``rank`` terms.

    Differences from the published method: it sums P over the workers before it goes on,
    which only a mean allows; and it starts from the Q of the step before. A row that
    feeds its error back has just sent what lies along that Q: a start from there loses
    as much as one from random numbers, where ``num_iterations=2`` loses less, and keeps
    nothing from step to step.

    Guarantees: an orthogonal projection, so no message is longer than its matrix, and
    matrices of this rank are exact, to rounding. A contraction with delta = rank /
    min(M, N) on average, whatever the matrix; more iterations bring it near the best
    product of that rank.

    Args:
      rank: columns r.
      key: random key, which messages' keys are folded from.
      num_iterations: how often M is multiplied from both sides.

    Returns:
      A :class:`Compressor`. Message: r (M + N) numbers in float32.

    Raises:
      ValueError: ``rank`` or ``num_iterations`` is no count.

    Cost: 2 ``num_iterations`` products of the matrix, or of both factors, with r
    columns, and as many QR decompositions of them.

    References: Vogels et al., `PowerSGD: Practical Low-Rank Gradient Compression for
    Distributed Optimization <https://arxiv.org/abs/1905.13727>`_, 2019.

    Examples:
      >>> import jax, jax.numpy as jnp, consensus_optax as co
      >>> code = co.compressors.low_rank(1, jax.random.key(0))
      >>> rows, params = jnp.ones((2, 8, 8)), jnp.zeros((8, 8))
      >>> compressed = co.compressed(code)
      >>> thin, _ = compressed.update(rows, compressed.init(params), params)
      >>> thin.left.shape, round(float(thin.materialize()[0, 0, 0]), 4)
      ((2, 1, 8), 1.0)
    """
    _check.key("key", key)
    _check.count("rank", rank)
    _check.count("num_iterations", num_iterations)

    def thin(into: Map, back: Map, sides: tuple[int, int], key: Any) -> Any:
        """(P, Q) for M by its products M x and M' x: (M, r) and (N, r)."""
        if sides[1] > sides[0]:
            right, left = thin(back, into, sides[::-1], key)
            return left, right
        basis = jax.random.normal(key, (sides[1], rank), jnp.float32)
        left = _orthonormal(into(basis))
        for _ in range(num_iterations - 1):
            left = _orthonormal(into(_orthonormal(back(left))))
        return left, back(left)

    def of_matrix(matrix: Array, key: Any) -> Any:
        largest = positive_or_one(jnp.max(jnp.abs(matrix), initial=0))
        scaled = matrix / largest
        into, back = (lambda x: _dot(scaled, x)), (lambda x: _dot(scaled.T, x))
        m, n = matrix.shape
        left, right = thin(into, back, (m, n), key)
        return left, right * largest

    def compress(array: Array, key: Any) -> Any:
        m, n = _sides(array.shape)
        if not _pays(rank, m, n):
            return {"values": array}
        left, right = of_matrix(array.astype(jnp.float32).reshape(m, n), key)
        return {"left": left, "right": right}

    def decompress(message: Any, shape: Shape, key: Any) -> Array:
        del key
        if "values" in message:
            return message["values"].astype(jnp.float32)
        return _dot(message["left"], message["right"].T).reshape(shape)

    def of_factors(leaf: OuterProduct, left: Array, right: Array, key: Any) -> Any:
        """The same of one product, (T, M) or (T,), and (T, N)."""
        if right.ndim == 3:
            keys = jax.random.split(key, right.shape[0])
            each = lambda *given: of_factors(leaf, *given)
            return jax.vmap(each)(left, right, keys)
        _, m, n = leaf.sides
        right = right.astype(jnp.float32)
        size = positive_or_one(jnp.max(jnp.abs(right), initial=0))
        right = right / size
        if leaf.is_look_up:
            into = lambda x: jax.ops.segment_sum(_dot(right, x), left, m)
            options = {"mode": "fill", "fill_value": 0, "wrap_negative_indices": False}
            back = lambda x: _dot(right.T, x.at[left].get(**options))
        else:
            left = left.astype(jnp.float32)
            largest = positive_or_one(jnp.max(jnp.abs(left), initial=0))
            left, size = left / largest, size * largest
            into = lambda x: _dot(left.T, _dot(right, x))
            back = lambda x: _dot(right.T, _dot(left, x))
        p, q = thin(into, back, (m, n), key)
        return p.T, q.T * size  # (r, M), (r, N)

    def factor(rows: Array | Factored, keys: Any) -> Array | Factored:
        if isinstance(rows, SumOfProducts):
            one = one_product(rows)
            rows = rows.materialize() if one is None else one
        if is_outer_product(rows):
            terms, m, n = rows.sides
            if terms <= rank or not _pays(rank, m, n):
                return rows
            leaf = unshared(rows)
            given = leaf.left, leaf.right, keys
            left, right = jax.vmap(lambda *x: of_factors(leaf, *x))(*given)
            float32 = jnp.dtype("float32")
            return dataclasses.replace(leaf, left=left, right=right, dtype=float32)
        m, n = _sides(rows.shape[1:])
        if not _pays(rank, m, n):
            return rows
        matrices = rows.astype(jnp.float32).reshape(-1, m, n)
        left, right = jax.vmap(of_matrix)(matrices, keys)
        columns = lambda x: x.swapaxes(1, 2)  # (B, r, M)
        step = ("reshape", rows.shape[1:])
        return OuterProduct(columns(left), columns(right), (m, n), (step,))

    def contraction(shape: Shape) -> float:
        m, n = _sides(shape)
        return rank / min(m, n) if _pays(rank, m, n) else 1.0

    return Compressor(
        compress,
        decompress,
        key,
        contraction=contraction,
        factor=factor,
        text=f"low_rank({rank}, ...)",
    )


def _sides(shape: Shape) -> tuple[int, int]:
    """The matrix that an array is seen as; of a vector there is none."""
    return (math.prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (0, 0)


def _pays(rank: int, m: int, n: int) -> bool:
    """Whether two thin matrices are less to send."""
    return rank * (m + n) < m * n


def _orthonormal(columns: Array) -> Array:
    """An orthonormal basis that has the columns in its span, (M, r)."""
    largest = jnp.max(jnp.abs(columns), initial=0)
    return jnp.linalg.qr(columns / positive_or_one(largest))[0]


def _dot(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)
