"""Which part of a factor multiplies to a slab of the parameter."""

import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax._rows.slabs import slab_of
from consensus_optax._rows.views import reshaped, transposed

RNG = np.random.default_rng(0)
COUNT = 2


def numbers(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def plain(m, n, row_shape, layers=()):
    left, right = numbers(3, *layers, 2, m), numbers(3, *layers, 2, n)
    return co.OuterProduct(left, right, (*layers, *row_shape))


def table(lines, n, row_shape):
    left = RNG.integers(0, lines, (3, 9))
    left[0, :2] = -1, lines  # of no line
    left = jnp.asarray(left, jnp.int32)
    return co.OuterProduct(left, numbers(3, 9, n), row_shape)


# Leaf, and for every axis of its parameter the factor that slabs along it are of.
LEAVES = {
    "matrix": (plain(4, 6, (4, 6)), ["left", "right"]),
    "heads": (plain(4, 24, (4, 6, 4)), ["left", "right", "right"]),
    "output": (plain(24, 4, (4, 6, 4)), ["left", "left", "right"]),
    "transposed": (
        transposed(reshaped(plain(4, 24, (4, 24)), (4, 6, 4)), (1, 0, 2)),
        ["right", "left", "right"],
    ),
    "split and moved": (
        transposed(reshaped(plain(8, 6, (8, 6)), (2, 4, 6)), (1, 2, 0)),
        ["left", "right", "left"],
    ),
    "merged": (reshaped(plain(4, 6, (4, 6)), (24,)), ["left"]),
    "a part across": (reshaped(plain(3, 8, (3, 8)), (4, 6)), [None, None]),
    "layers": (plain(4, 6, (4, 6), (2,)), [None, "left", "right"]),
    "layers behind": (
        transposed(plain(4, 6, (4, 6), (2,)), (1, 2, 0)),
        ["left", "right", None],
    ),
    "table": (table(4, 6, (4, 6)), ["left", "right"]),
    "table of heads": (table(4, 12, (4, 2, 6)), ["left", "right", "right"]),
    "table of two indices": (
        reshaped(table(16, 6, (16, 6)), (2, 8, 6)),
        ["left", "left", "right"],
    ),
    "table, moved": (
        transposed(reshaped(table(16, 6, (16, 6)), (2, 4, 2, 6)), (3, 1, 0, 2)),
        ["right", "left", "left", "left"],
    ),
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_slab_of_the_rows_is_that_of_a_part_of_one_factor(name):
    leaf, sides = LEAVES[name]
    rows = leaf.materialize()
    assert len(sides) == rows.ndim - 1
    for axis, side in enumerate(sides):
        slab = slab_of(leaf, axis, COUNT)
        assert (None if slab is None else slab.side) == side, axis
        if slab is None:
            continue
        for number, wanted in enumerate(jnp.split(rows, COUNT, axis + 1)):
            factor = getattr(leaf, slab.side)
            *others, _ = factor.shape
            if factor.dtype == jnp.int32:
                part = slab.lines(factor, number, COUNT)
                there = (part >= 0) & (part < slab.row_shape[0])
                assert jnp.all(there | (part == -1))
            else:
                seen = factor.reshape(*others, *slab.run)
                part = jnp.split(seen, COUNT, len(others) + 1)[number]
                part = part.reshape(*others, -1)
            given = {"left": leaf.left, "right": leaf.right, slab.side: part}
            own = slab.of(leaf, given["left"], given["right"])
            assert own.shape == wanted.shape
            # each entry is the same sum of products
            np.testing.assert_allclose(own.materialize(), wanted, rtol=1e-6)


def test_as_many_slabs_as_divide_an_axis_that_is_apart_in_the_product():
    """Of 6 lines (2, 3) two slabs are of one factor's halves, three are of none."""
    leaf = reshaped(plain(2, 3 * 4, (2, 12)), (6, 4))
    assert slab_of(leaf, 0, 2).run == (1, 2, 1)
    assert slab_of(leaf, 0, 3) is None
