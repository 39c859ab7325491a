"""Signs, one bit each, and one length."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._typing import Array
from consensus_optax.compressors._compressor import Compressor, Shape, flat32


def scaled_sign() -> Compressor:
    r"""Sends one bit for every entry, and their mean magnitude.

    Also known as: EF-signSGD's compressor, 1-bit SGD, SignSGD with scale.

    .. math:: C(x) = \frac{\|x\|_1}{d} \operatorname{sign}(x)

    Biased: ``co.error_feedback`` is what makes EF-signSGD of it.

    Guarantees: a contraction with :math:`\delta = \|x\|_1^2 / (d \|x\|^2)` on every
    array, 1 / d at the least, about 2 / pi where entries are normal.
    Edge cases: the sign of 0 is 1; an array of zeros stays zero.

    Returns:
      A :class:`Compressor`. Message: ceil(d / 8) bytes, and 4 for the magnitude.

    Cost: one pass.

    References: Karimireddy et al., `Error Feedback Fixes SignSGD and other Gradient
    Compression Schemes <https://arxiv.org/abs/1901.09847>`_, 2019.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> code = co.compressors.scaled_sign()
      >>> message = code.compress(jnp.array([1., -3., 2., 0.]), None)
      >>> message["bits"].dtype, code.decompress(message, (4,), None).tolist()
      (dtype('uint8'), [1.5, -1.5, 1.5, 1.5])
    """

    def compress(array: Array, key: Any) -> Any:
        del key
        flat = flat32(array)
        largest = positive_or_one(jnp.max(jnp.abs(flat), initial=0))
        mean = jnp.sum(jnp.abs(flat) / largest) / max(flat.size, 1)  # no sum overflows
        return {"bits": jnp.packbits(flat >= 0), "scale": mean * largest}

    def decompress(message: Any, shape: Shape, key: Any) -> Array:
        del key
        return signs_of(message["bits"], shape) * message["scale"]

    return Compressor(
        compress,
        decompress,
        contraction=lambda shape: 1 / max(math.prod(shape), 1),
        text="scaled_sign()",
    )


def signs_of(bits: Array, shape: Shape) -> Array:
    """1 where a bit is set, else -1."""
    positive = jnp.unpackbits(bits, count=math.prod(shape)).reshape(shape)
    return jnp.where(positive == 1, 1.0, -1.0).astype(jnp.float32)
