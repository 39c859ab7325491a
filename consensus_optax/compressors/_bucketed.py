"""An array in equal pieces, each compressed by itself."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._typing import Array
from consensus_optax.compressors._compressor import (
    Compressor,
    Shape,
    checked_compressor,
)


def bucketed(
    compressor: Compressor, *, size: int | None = None, count: int | None = None
) -> Compressor:
    r"""Cuts an array into pieces and compresses each by itself, with its own scale.

    Also known as: bucketing, blockwise quantization.

    Piece n has the key ``fold_in(key, n)``. Of ``count`` = N pieces it is what
    ``co.sharded`` makes of a leaf whose coordinates it deals out to N devices, so
    error feedback ahead of a wire of ``compressor`` is that of
    ``bucketed(compressor, count=N)``.

    Guarantees: contraction and variance of the compressor on arrays of the size of a
    piece, which the last one is filled up to by zeros.
    Edge cases: zeros that fill a piece up are entries of it: they lower its mean
    magnitude, and may be among what is drawn.

    Args:
      compressor: any but those that make products, which need the whole matrix.
      size: entries of a piece.
      count: how many pieces; one of the two is given.

    Returns:
      A :class:`Compressor`. Message: those of the pieces.

    Raises:
      ValueError: both or none of ``size`` and ``count`` are given, or one is no count;
        ``compressor`` is none, or makes products.

    Cost: the compressor's.

    Examples:
      >>> import jax, jax.numpy as jnp, consensus_optax as co
      >>> code = co.compressors.bucketed(co.compressors.scaled_sign(), size=2)
      >>> message = code.compress(jnp.array([1., 3., -10.]), None)
      >>> code.decompress(message, (3,), None).tolist()
      [2.0, 2.0, -5.0]
    """
    checked_compressor("compressor", compressor)
    if compressor.factor is not None:
        _check.fail("compressor", "one of entries, not of matrices", compressor)
    if (size is None) == (count is None):
        _check.fail("size", "given, or else `count`, not both", size)
    _check.count("count" if size is None else "size", count if size is None else size)

    def pieces(total: int) -> tuple[int, int]:
        """How many, and how long."""
        if count is not None:
            return count, -(-total // count)
        each = min(size or 1, max(total, 1))
        return -(-total // each), each

    def keys_of(key: Any, number: int) -> Any:
        if compressor.key is None:
            return None
        numbers = jnp.arange(number, dtype=jnp.int32)
        return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)

    def compress(array: Array, key: Any) -> Any:
        number, each = pieces(array.size)
        filled = jnp.pad(array.reshape(-1), (0, number * each - array.size))
        apart = filled.reshape(number, each)
        return jax.vmap(compressor.compress)(apart, keys_of(key, number))

    def decompress(message: Any, shape: Shape, key: Any) -> Array:
        number, each = pieces(math.prod(shape))
        one = lambda part, key: compressor.decompress(part, (each,), key)
        whole = jax.vmap(one)(message, keys_of(key, number)).reshape(-1)
        return whole[: math.prod(shape)].reshape(shape)

    def of_piece(bound: Any) -> Any:
        return bound and (lambda shape: bound((pieces(math.prod(shape))[1],)))

    option = f"size={size}" if count is None else f"count={count}"
    return compressor._replace(
        compress=compress,
        decompress=decompress,
        contraction=of_piece(compressor.contraction),
        variance=of_piece(compressor.variance),
        text=f"bucketed({compressor}, {option})",
    )
