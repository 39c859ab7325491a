"""Few levels for every entry, drawn so that the mean is right."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._typing import Array
from consensus_optax.compressors._compressor import Compressor, Shape, flat32

_SCALES = ("max", "norm", "range")


def stochastic_quantization(
    bits: int, key: Array, *, scale: str | float = "max"
) -> Compressor:
    r"""Rounds every entry to one of the two nearest levels, without bias.

    Also known as: QSGD, TernGrad (2 bits), uniform stochastic quantization.

    .. math:: C(x)_j = \frac{m}{s} \operatorname{sign}(x_j) \left\lfloor
        \frac{s |x_j|}{m} + u_j \right\rfloor, \qquad s = 2^{b - 1} - 1, \quad u_j \sim
        U[0, 1)

    with m the largest magnitude, or the norm of x, as QSGD is written. Of
    ``scale="range"`` there are 2^b levels from the least entry to the largest, as
    FedJAX's ``uniform_stochastic_quantize`` has them; of a number c, from -c to c, as
    Flower's ``quantize`` has them, with what is beyond clipped.

    Guarantees: unbiased to s 2^-22 of a level, but for what a number clips, with
    variance omega = min(d / (4 s^2), sqrt(d) / s), or d / (2 (2^b - 1)^2) of a range.
    Where that is below 1, a contraction with delta = 1 - omega. Both grow with d:
    ``co.compressors.bucketed`` cuts an array into pieces with a scale each. Whatever d
    is, no entry is off by more than m / s, or (max - min) / (2^b - 1): so errors fed
    back stay bounded, but for ``"norm"``, and for 2 bits of ``"max"``.
    Edge cases: an array of zeros stays zero, and so does every zero, of a range alone
    it may not. Entries of the largest magnitude are exact, except for ``"norm"``.

    Args:
      bits: b: 8, 4 or 2 for each entry.
      key: random key, which messages' keys are folded from.
      scale: ``"max"``, ``"norm"``, ``"range"``, or a number.

    Returns:
      A :class:`Compressor`. Message: ceil(d b / 8) bytes of levels, and 4 for a scale,
      8 for a range, none for a number.

    Raises:
      ValueError: ``bits`` or ``scale`` is none of these.

    Cost: one random number for every entry.

    References: Alistarh et al., `QSGD: Communication-Efficient SGD via Gradient
    Quantization and Encoding <https://arxiv.org/abs/1610.02132>`_, 2017; Suresh et al.,
    `Distributed Mean Estimation with Limited Communication
    <https://arxiv.org/abs/1611.00429>`_, 2017.

    Examples:
      >>> import jax, jax.numpy as jnp, consensus_optax as co
      >>> key = jax.random.key(0)
      >>> code = co.compressors.stochastic_quantization(4, key)
      >>> message = code.compress(jnp.array([7., -7., 0.]), key)
      >>> message["levels"].shape, code.decompress(message, (3,), key).tolist()
      ((2,), [7.0, -7.0, 0.0])
    """
    _check.key("key", key)
    _check.one_of_counts("bits", bits, (8, 4, 2))
    signed, of_range = scale in ("max", "norm"), scale == "range"
    if isinstance(scale, str):
        _check.one_of("scale", scale, _SCALES)
    else:
        _check.static_number("scale", scale, 0, open_low=True)
    # Levels are counted from 0: of signed ones 0 is -s.
    top = 2**bits - 2 if signed else 2**bits - 1
    half = top // 2
    limit = jnp.float32(0 if isinstance(scale, str) else scale)

    def compress(array: Array, key: Any) -> Any:
        flat = flat32(array)
        if signed:
            size = _size(flat, scale == "norm")
            where = jnp.abs(flat) / positive_or_one(size) * half
            drawn = _drawn(where, key)
            levels = jnp.where(flat < 0, half - drawn, half + drawn)
            return {"levels": _packed(levels, bits), "scale": size}
        ends: dict[str, Array] = {}
        if of_range:
            low, high = jnp.min(flat, initial=jnp.inf), jnp.max(flat, initial=-jnp.inf)
            ends = {"low": low, "high": high}
        else:
            low, high = -limit, limit
        width = positive_or_one(high / 2 - low / 2)  # halves: no range overflows
        where = jnp.clip((flat / 2 - low / 2) / width, 0, 1) * top
        return {"levels": _packed(_drawn(where, key), bits), **ends}

    def decompress(message: Any, shape: Shape, key: Any) -> Array:
        del key
        levels = _unpacked(message["levels"], bits, shape).astype(jnp.float32)
        if signed:
            return (levels - half) / half * message["scale"]
        low, high = message.get("low", -limit), message.get("high", limit)
        share = levels / top
        return (1 - share) * low + share * high

    def variance(shape: Shape) -> float:
        size = math.prod(shape)
        if not signed:
            return size / (2 * top**2)
        return min(size / (4 * half**2), math.sqrt(size) / half)

    bounded = signed or of_range
    off = {"max": 1 / half, "range": 2 / top}.get(str(scale), 1.0)  # of the largest
    return Compressor(
        compress,
        decompress,
        key,
        contraction=(lambda shape: max(0.0, 1 - variance(shape))) if bounded else None,
        variance=variance if bounded else None,
        largest=off if off < 1 else None,
        text=f"stochastic_quantization({bits}, ..., scale={scale!r})",
    )


def _size(flat: Array, norm: bool) -> Array:
    """The largest magnitude, or the norm, which is no less and finite."""
    largest = jnp.max(jnp.abs(flat), initial=0)
    if not norm:
        return largest
    shares = flat / positive_or_one(largest)
    length = jnp.sqrt(jnp.sum(shares * shares)) * largest
    return jnp.clip(length, largest, jnp.finfo(jnp.float32).max)


def _drawn(where: Array, key: Any) -> Array:
    """One of the two integers nearest to each number, with the right mean."""
    lower = jnp.floor(where)
    numbers = jax.random.uniform(key, where.shape, jnp.float32)
    return jnp.where(numbers < where - lower, lower + 1, lower).astype(jnp.int32)


def _packed(levels: Array, bits: int) -> Array:
    """Numbers of a few bits, several in a byte."""
    each = 8 // bits
    filled = jnp.pad(levels.astype(jnp.uint8), (0, -levels.size % each))
    places = bits * jnp.arange(each, dtype=jnp.uint8)
    return jnp.bitwise_or.reduce(filled.reshape(-1, each) << places[None], axis=1)


def _unpacked(packed: Array, bits: int, shape: Shape) -> Array:
    """The inverse."""
    places = bits * jnp.arange(8 // bits, dtype=jnp.uint8)
    levels = (packed[:, None] >> places[None]) & jnp.uint8(2**bits - 1)
    return levels.reshape(-1)[: math.prod(shape)].reshape(shape)
