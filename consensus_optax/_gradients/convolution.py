"""A convolution as one matrix product, where it is the gradient of a kernel.

``vmap`` of such a convolution is a grouped one, which XLA runs two to seven times
slower on a CPU than the same as a batched product of patches, and whose rows it lays
side by side. As a product it is also a last contraction like any other.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from consensus_optax._rows.explicit import apart, joined
from consensus_optax._typing import Array

# Positions of the result are slices of the program: an 11 x 11 kernel has 121.
_MOST_POSITIONS = 128


def as_product(eqn: Any, image: Array, kernel: Array) -> Array | None:
    """The result of a ``conv_general_dilated``, or None where this is no good way.

    In a kernel's gradient the roles are exchanged: the image's examples are what is
    summed, the "kernel" is the cotangent, large, and the result has the positions of
    the true kernel, few. For each of them the image is sliced once:
    ``result[position, n, f] = sum_t patches[t, (position, n)] * kernel[t, f]``.
    """
    params = eqn.params
    n_axis, f_axis, *axes = params["dimension_numbers"].out_spec
    shape = eqn.outvars[0].aval.shape
    positions = [shape[axis] for axis in axes]
    groups = params["feature_group_count"] * params["batch_group_count"]
    few = 0 < math.prod(positions) <= _MOST_POSITIONS
    if groups > 1 or not (few or _are_tiles(params, positions)):
        return None
    patches = _patches(params, image, kernel.shape, positions)  # (T, M)
    out, in_, *space = params["dimension_numbers"].rhs_spec
    right = joined(kernel.transpose(in_, *space, out), 0, kernel.ndim - 1)
    result = lax.dot_general(
        patches,
        right,
        (((0,), (0,)), ((), ())),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    result = apart(result, 0, (*positions, shape[n_axis]))
    places = [0] * len(shape)
    for place, axis in enumerate((*axes, n_axis, f_axis)):
        places[axis] = place
    return result.transpose(places)


def _patches(
    params: Any, image: Array, kernel_shape: tuple[int, ...], positions: list[int]
) -> Array:
    """What every entry of the kernel is multiplied with, (T, M)."""
    batch, feature, *axes = params["dimension_numbers"].lhs_spec
    sides = [kernel_shape[axis] for axis in params["dimension_numbers"].rhs_spec[2:]]
    edges = [(0, 0, 0)] * image.ndim
    for axis, (low, high), dilation in zip(
        axes, params["padding"], params["lhs_dilation"], strict=True
    ):
        edges[axis] = (low, high, dilation - 1)
    padded = lax.pad(image, jnp.zeros((), image.dtype), edges)
    if _are_tiles(params, positions):
        return _tiles(padded.transpose(feature, *axes, batch), sides, positions)

    def patch(position: tuple[int, ...]) -> Array:
        low, high, step = [0] * image.ndim, list(padded.shape), [1] * image.ndim
        for axis, index, stride, side, dilation in zip(
            axes,
            position,
            params["window_strides"],
            sides,
            params["rhs_dilation"],
            strict=True,
        ):
            low[axis] = index * stride
            high[axis] = index * stride + (side - 1) * dilation + 1
            step[axis] = dilation
        seen = lax.slice(padded, low, high, step)
        return seen.transpose(feature, *axes, batch)

    each = [patch(position) for position in itertools.product(*map(range, positions))]
    terms = joined(jnp.stack(each, -2), 0, 1 + len(sides))
    return joined(terms, 1, 3)


def _are_tiles(params: Any, positions: list[int]) -> bool:
    """Whether the true kernel is moved by its own length: patches do not overlap."""
    alone = all(stride == 1 for stride in params["window_strides"])
    return alone and list(params["rhs_dilation"]) == positions and 0 not in positions


def _tiles(image: Array, sides: list[int], positions: list[int]) -> Array:
    """Patches that do not overlap, (T, M): every axis of the image cut in two."""
    count = len(sides)
    for axis in reversed(range(count)):
        image = apart(image, 1 + axis, (sides[axis], positions[axis]))
    order = (*range(1, 2 * count, 2), *range(2, 2 * count + 1, 2))
    image = image.transpose(0, *order, 1 + 2 * count)
    terms = joined(image, 0, 1 + count)
    return joined(terms, 1, 2 + count)
