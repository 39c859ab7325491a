"""Powers of two, drawn so that the mean is right."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._typing import Array
from consensus_optax.compressors._compressor import Compressor, Shape, flat32

_MANTISSA = 23
_LARGEST = 254  # 255 is inf


def natural(key: Array) -> Compressor:
    r"""Rounds every entry to one of the two nearest powers of two, without bias.

    Also known as: natural compression.

    .. math:: |C(x)| = 2^{\lfloor \log_2 |x| \rfloor + u}, \qquad P(u = 1) =
        |x| / 2^{\lfloor \log_2 |x| \rfloor} - 1

    A sign and the exponent of float32 are 9 bits; no entry depends on another.

    Guarantees: unbiased with variance omega = 1 / 8, and so a contraction with delta =
    7 / 8, whatever the array; zeros and powers of two stay.
    Edge cases: subnormal numbers become 0 or the smallest normal number. Entries above
    2^127 become 2^127.

    Args:
      key: random key, which messages' keys are folded from.

    Returns:
      A :class:`Compressor`. Message: d bytes of exponents, ceil(d / 8) of signs.

    Cost: one random number for every entry.

    References: Horváth et al., `Natural Compression for Distributed Deep Learning
    <https://arxiv.org/abs/1905.10988>`_, 2019.

    Examples:
      >>> import jax, jax.numpy as jnp, consensus_optax as co
      >>> key = jax.random.key(0)
      >>> code = co.compressors.natural(key)
      >>> message = code.compress(jnp.array([0., -4., 3.]), key)
      >>> code.decompress(message, (3,), key)[:2].tolist()
      [0.0, -4.0]
    """
    _check.key("key", key)

    def compress(array: Array, key: Any) -> Any:
        flat = flat32(array)
        bits = lax.bitcast_convert_type(flat, jnp.uint32)
        noise = jax.random.bits(key, flat.shape, jnp.uint32) >> (32 - _MANTISSA)
        # Noise below the exponent carries into it with the probability that is asked.
        carried = (bits & jnp.uint32(0x7FFFFFFF)) + noise
        exponents = jnp.minimum(carried >> _MANTISSA, _LARGEST)
        return {
            "exponents": exponents.astype(jnp.uint8),
            "signs": jnp.packbits(bits >> 31 == 0),
        }

    def decompress(message: Any, shape: Shape, key: Any) -> Array:
        del key
        exponents = message["exponents"].astype(jnp.uint32) << _MANTISSA
        positive = jnp.unpackbits(message["signs"], count=math.prod(shape))
        bits = exponents | ((1 - positive.astype(jnp.uint32)) << 31)
        return lax.bitcast_convert_type(bits, jnp.float32).reshape(shape)

    return Compressor(
        compress,
        decompress,
        key,
        contraction=lambda shape: 7 / 8,
        variance=lambda shape: 1 / 8,
        text="natural(...)",
    )
