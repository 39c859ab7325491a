"""Quantized values that FedJAX 0.0.17 and Flower 1.42 give for the same numbers."""

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


def test_signs_with_a_scale_are_shorter_than_drive_s():
    """FedJAX's ``drive_pytree``: signs times sum of squares over sum of sizes.

    Ours have the mean size, which is nearest; DRIVE's are without bias once rotated.
    Its sign of zero is zero, ours a bit.
    """
    theirs = 1.8264368 * np.array([1, -1, 1, 0, 1, -1, 1, -1])
    code = compressors.scaled_sign()
    found = code.decompress(code.compress(GIVEN, None), GIVEN.shape, None)
    np.testing.assert_allclose(np.abs(found), 1.0875, rtol=1e-6)
    signed = np.flatnonzero(theirs)
    ratio = np.asarray(found)[signed] / theirs[signed]
    squares, sizes = float((GIVEN**2).sum()), float(jnp.abs(GIVEN).sum())
    np.testing.assert_allclose(ratio, sizes**2 / (8 * squares), rtol=1e-6)


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
