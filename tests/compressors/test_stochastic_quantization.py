"""Quantized values as FedJAX and Flower have them, for the same random numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax import compressors
from tests._selected import in_ci

KEY = jax.random.key(7)
GIVEN = jnp.array([0.3, -1.2, 2.5, 0.0, 0.7, -0.1, 1.9, -2.0])


def arrived(bits, scale):
    code = compressors.stochastic_quantization(bits, KEY, scale=scale)
    message = code.compress(GIVEN, KEY)
    return code.decompress(message, GIVEN.shape, KEY)


@pytest.mark.parametrize(
    ("bits", "theirs"),
    [
        (4, [0.1, -1.4, 2.5, 0.1, 0.7, -0.2, 1.9, -2.0]),
        (2, [-0.5, -2.0, 2.5, -0.5, 1.0, -0.5, 2.5, -2.0]),
    ],
)
def test_a_range_is_fedjax_s(bits, theirs):
    """``uniform_stochastic_quantize(v, 2**bits, key)`` of FedJAX."""
    np.testing.assert_allclose(arrived(bits, "range"), theirs, rtol=2e-6)


def test_a_fixed_range_is_flower_s():
    """``quantize`` and ``dequantize`` with clipping 1.5 and target range 15.

    It rounds down where its random number is below what is missing to the next level;
    here that is one minus ours.
    """
    theirs = [0.3, -1.3, 1.5, 0.1, 0.7, -0.1, 1.5, -1.5]
    np.testing.assert_allclose(arrived(4, 1.5), theirs, rtol=0, atol=1e-6)


@in_ci
def test_two_bits_are_terngrad_s():
    """FedJAX's ``terngrad_quantize`` where its clipping at 2.5 deviations does none."""
    assert arrived(2, "max").tolist() == [0.0, 0.0, 2.5, 0.0, 0.0, 0.0, 2.5, -2.5]


def test_signs_with_a_scale_are_fedjax_s_drive():
    """``drive_pytree``, but for its sign of zero, which ours has as a bit."""
    code = compressors.scaled_sign()
    found = code.decompress(code.compress(GIVEN, None), GIVEN.shape, None)
    theirs = 1.0875 * np.where(GIVEN < 0, -1, 1)
    np.testing.assert_allclose(found, theirs, rtol=1e-6)


@in_ci
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_every_level_survives_packing(bits):
    top = 2 ** (bits - 1) - 1
    levels = jnp.arange(-top, top + 1, dtype=jnp.float32)  # an odd number of them
    code = compressors.stochastic_quantization(bits, KEY)
    message = code.compress(levels, KEY)
    assert message["levels"].dtype == jnp.uint8
    found = code.decompress(message, levels.shape, KEY)
    np.testing.assert_allclose(found, levels, rtol=1e-6)
