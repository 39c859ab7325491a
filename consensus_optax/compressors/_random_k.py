"""Entries drawn at random, of a seed that both sides have."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._typing import Array
from consensus_optax.compressors._compressor import (
    Compressor,
    Shape,
    count_of,
)


def random_k(fraction: float, key: Array, *, rescale: bool = True) -> Compressor:
    r"""Sends entries drawn without replacement; the rest is zero.

    Also known as: random sparsification, Rand-K, random mask.

    .. math:: C(x) = \tfrac dk\, x_S, \qquad |S| = k = \lceil \mathrm{fraction} \cdot d
        \rceil

    Places are not sent: who gets the message draws them of the same key.

    Guarantees: every entry is as likely to be sent. With ``rescale`` unbiased, with
    variance omega = d / k - 1; without, a contraction with delta = k / d on average,
    for ``co.error_feedback``, where the rescaled one is an error.

    Args:
      fraction: the share of entries, in (0, 1].
      key: random key, which messages' keys are folded from.
      rescale: whether what is sent is multiplied by d / k.

    Returns:
      A :class:`Compressor`. Message: k numbers in the array's dtype.

    Raises:
      ValueError: ``fraction`` is out of range, ``rescale`` is no flag.

    Cost: d random numbers, and a partial sort, on both sides.

    References: Stich et al., `Sparsified SGD with Memory
    <https://arxiv.org/abs/1809.07599>`_, 2018; Konečný et al., `Federated Learning:
    Strategies for Improving Communication Efficiency
    <https://arxiv.org/abs/1610.05492>`_, 2016.

    Examples:
      >>> import jax, jax.numpy as jnp, consensus_optax as co
      >>> key = jax.random.key(0)
      >>> code = co.compressors.random_k(0.25, key)
      >>> message = code.compress(jnp.ones(4), key)
      >>> sorted(code.decompress(message, (4,), key).tolist())
      [0.0, 0.0, 0.0, 4.0]
    """
    _check.key("key", key)
    _check.static_number("fraction", fraction, 0, 1, open_low=True)
    _check.flag("rescale", rescale)

    def places_of(key: Any, size: int) -> Array:
        numbers = jax.random.bits(key, (size,), jnp.uint32)
        return lax.top_k(numbers, count_of(fraction, size))[1]

    def compress(array: Array, key: Any) -> Any:
        return {"values": array.reshape(-1)[places_of(key, array.size)]}

    def decompress(message: Any, shape: Shape, key: Any) -> Array:
        size = math.prod(shape)
        values = message["values"].astype(jnp.float32)
        if rescale and size:
            values = values * (size / count_of(fraction, size))
        zeros, places = jnp.zeros(size, jnp.float32), places_of(key, size)
        return zeros.at[places].set(values, unique_indices=True).reshape(shape)

    def share(shape: Shape) -> float:
        size = max(math.prod(shape), 1)
        return count_of(fraction, size) / size

    return Compressor(
        compress,
        decompress,
        key,
        contraction=None if rescale else share,
        variance=(lambda shape: 1 / share(shape) - 1) if rescale else None,
        is_sparse=True,
        text=f"random_k({fraction}, ...{'' if rescale else ', rescale=False'})",
    )
