"""Gradients of convolutions: products of patches, and those of jax.vmap(jax.grad)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import consensus_optax as co
from consensus_optax._gradients.contraction import ends_of_rows

ROWS = 3
NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# image of one example, kernel, arguments of the convolution
CASES = {
    "same": ((5, 6, 2), (3, 3, 2, 4), {"padding": "SAME"}),
    "valid": ((5, 6, 2), (3, 2, 2, 4), {"padding": "VALID"}),
    "one by one": ((4, 4, 3), (1, 1, 3, 5), {}),
    "whole image": ((4, 4, 3), (4, 4, 3, 5), {"padding": "VALID"}),
    "strides": ((7, 8, 2), (3, 3, 2, 4), {"window_strides": (2, 3)}),
    "stride leaves a rest": (
        (8, 8, 1),
        (3, 3, 1, 2),
        {"window_strides": (2, 2), "padding": "VALID"},
    ),
    "own padding": ((5, 5, 2), (3, 3, 2, 2), {"padding": [(2, 0), (0, 3)]}),
    "cropped": ((6, 6, 2), (3, 3, 2, 2), {"padding": [(-1, 0), (1, -2)]}),
    "dilated kernel": ((8, 8, 2), (3, 3, 2, 2), {"rhs_dilation": (2, 2)}),
    "transposed": (
        (4, 4, 2),
        (3, 3, 2, 3),
        {"lhs_dilation": (2, 2), "padding": [(2, 2), (2, 2)]},
    ),
    "channels first": ((2, 5, 6), (4, 2, 3, 3), {"dimension_numbers": NCHW}),
    "one axis": ((9, 2), (3, 2, 4), {"dimension_numbers": ("NWC", "WIO", "NWC")}),
    "three axes": (
        (4, 3, 5, 2),
        (2, 2, 2, 2, 3),
        {"dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")},
    ),
    "tiles": (
        (24, 26, 2),
        (12, 13, 2, 3),
        {"window_strides": (12, 13), "padding": "VALID"},
    ),
    "tiles of a part": (
        (2, 9, 11),
        (3, 2, 2, 3),
        {
            "window_strides": (2, 3),
            "padding": [(1, 0), (-1, 0)],
            "dimension_numbers": NCHW,
        },
    ),
    # left as they are
    "depthwise": ((5, 5, 4), (3, 3, 1, 8), {"feature_group_count": 4}),
    "large kernel": ((14, 14, 1), (12, 12, 1, 1), {"padding": "VALID"}),
}
LEFT = {"depthwise", "large kernel"}


def make(name):
    image, kernel, options = CASES[name]
    strides = (1,) * (len(image) - 1)
    options = {"window_strides": strides, "padding": "SAME"} | options
    options = {"dimension_numbers": NHWC} | options

    def loss(k, x):
        return jnp.mean(jnp.tanh(lax.conv_general_dilated(x, k, **options)))

    return loss, draw(0, *kernel), draw(1, 2 * ROWS, *image)


def assert_rows(loss, params, batch, group_size=1, **options):
    groups = batch.reshape(-1, group_size, *batch.shape[1:])
    expected = jax.vmap(jax.grad(loss), (None, 0))(params, groups)
    for whole in (False, True):
        rows = co.per_example_grad(
            loss, group_size=group_size, materialize=whole, **options
        )
        given = co.materialize(jax.jit(rows)(params, batch))
        assert given.dtype == expected.dtype
        size = np.abs(expected).max()
        # sums of up to 200 terms in another order
        np.testing.assert_allclose(given, expected, rtol=0, atol=3e-6 * size)


@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_of_vmap_of_grad(name):
    assert_rows(*make(name))


@pytest.mark.parametrize("name", ["strides", "transposed", "channels first"])
def test_examples_of_a_group_are_summed(name):
    assert_rows(*make(name), group_size=2)


@pytest.mark.parametrize("name", CASES)
def test_rows_end_in_a_product(name):
    loss, params, batch = make(name)
    of_row = lambda p, x: (0.0, jax.grad(loss)(p, x))
    ends = []

    def rows(params, groups):  # traced alone: what it ends in is known by then
        ends.extend(ends_of_rows(of_row, (None, 0), params, groups))

    jax.eval_shape(rows, params, batch[:, None])
    (end,) = ends  # small ones are no larger multiplied out
    assert end.startswith("conv_general_dilated" if name in LEFT else "dot_general")


def test_many_channels_stay_factored():
    loss = lambda k, x: jnp.mean(lax.conv(x, k, (1, 1), "SAME") ** 2)
    params, batch = draw(0, 32, 16, 3, 3), draw(1, ROWS, 16, 4, 4)
    rows = co.per_example_grad(loss)(params, batch)
    assert co.is_outer_product(rows)
    assert rows.sides == (16, 144, 32)  # positions of the image; 9 x 16; channels
    assert_rows(loss, params, batch)


def test_a_kernel_used_twice():
    def loss(k, x):
        layer = lambda x: lax.conv_general_dilated(
            jnp.tanh(x), k, (1, 1), "SAME", dimension_numbers=NHWC
        )
        return jnp.mean(layer(layer(x)) ** 2)

    assert_rows(loss, draw(0, 3, 3, 4, 4), draw(1, ROWS, 5, 5, 4))


def test_inside_checkpoint_and_vmap():
    def loss(k, x):
        one = lambda image: lax.conv_general_dilated(
            image[None], k, (1, 1), "SAME", dimension_numbers=NHWC
        )
        return jnp.mean(jax.checkpoint(jax.vmap(one))(x) ** 2)

    assert_rows(loss, draw(0, 3, 3, 4, 4), draw(1, 2 * ROWS, 5, 5, 4), group_size=2)


def test_gradient_of_the_image_is_left_alone():
    """What a convolution is added to has few positions only if the image is small."""
    kernel = draw(2, 3, 3, 2, 4)

    def loss(offset, x):
        image = x + offset[None]
        out = lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=NHWC
        )
        return jnp.mean(out**2)

    assert_rows(loss, draw(0, 5, 5, 2), draw(1, ROWS, 5, 5, 2))


def test_bfloat16():
    def loss(k, x):
        out = lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=NHWC
        ).astype(jnp.float32)
        return jnp.mean(out**2)

    params, batch = draw(0, 3, 3, 2, 4), draw(1, ROWS, 5, 5, 2)
    half = [x.astype(jnp.bfloat16) for x in (params, batch)]
    given = co.materialize(co.per_example_grad(loss)(*half))
    assert given.dtype == jnp.bfloat16
    expected = jax.vmap(jax.grad(loss), (None, 0))(params, batch[:, None])
    error = np.abs(given.astype(jnp.float32) - expected).max()
    assert error < 2e-2 * np.abs(expected).max()  # 8 bits, a few roundings
