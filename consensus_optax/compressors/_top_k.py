"""The entries of largest magnitude."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._typing import Array
from consensus_optax.compressors._compressor import (
    Compressor,
    Shape,
    count_of,
    flat32,
)


def top_k(fraction: float) -> Compressor:
    r"""Sends the entries of largest magnitude and where they are; the rest is zero.

    Also known as: sparsification, gradient dropping, Top-K.

    Of every array of d entries, k = ceil(fraction d). Biased, so use it in
    ``co.error_feedback``, without which it may diverge.

    Guarantees: a contraction with delta = k / d, on every array, not on average.
    Edge cases: among equal magnitudes the first entry counts. An array of one entry
    is sent whole.

    Args:
      fraction: the share of entries, in (0, 1].

    Returns:
      A :class:`Compressor`. Message: k numbers in the array's dtype, and k places of 1,
      2 or 4 bytes, whichever counts d entries.

    Raises:
      ValueError: ``fraction`` is out of range.

    Cost: a partial sort.

    References: Stich et al., `Sparsified SGD with Memory
    <https://arxiv.org/abs/1809.07599>`_, 2018.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> code = co.compressors.top_k(0.25)
      >>> message = code.compress(jnp.array([1., -3., 2., 0.]), None)
      >>> message["values"].tolist(), message["places"].tolist()
      ([-3.0], [1])
    """
    _check.static_number("fraction", fraction, 0, 1, open_low=True)

    def compress(array: Array, key: Any) -> Any:
        del key
        flat = array.reshape(-1)
        magnitudes = jnp.abs(flat32(array))
        _, places = lax.top_k(magnitudes, count_of(fraction, flat.size))
        return {
            "values": flat[places],
            "places": places.astype(_index_dtype(flat.size)),
        }

    def decompress(message: Any, shape: Shape, key: Any) -> Array:
        del key
        zeros = jnp.zeros(math.prod(shape), jnp.float32)
        places = message["places"].astype(jnp.int32)
        values = message["values"].astype(jnp.float32)
        return zeros.at[places].set(values, unique_indices=True).reshape(shape)

    def contraction(shape: Shape) -> float:
        size = max(math.prod(shape), 1)
        return count_of(fraction, size) / size

    return Compressor(
        compress,
        decompress,
        contraction=contraction,
        is_sparse=True,
        text=f"top_k({fraction})",
    )


def _index_dtype(size: int) -> Any:
    """The narrowest that counts so many places."""
    fits = [t for t in (jnp.uint8, jnp.uint16) if size <= int(jnp.iinfo(t).max) + 1]
    return fits[0] if fits else jnp.uint32
