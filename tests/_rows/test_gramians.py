"""Inner products of all pairs of rows: each way of taking them, against float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax._rows import gramians
from tests._bounds import assert_sums

B, C = 5, 3


def arrays(width, dtype=jnp.float32):
    """Two stacks of a mean of 1, of which one row is far off."""
    random = np.random.default_rng(width)
    x, y = 1 + random.normal(size=(B, width)), 1 + random.normal(size=(C, width))
    x[2] *= 1e4
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def check(got, x, y, roundings=0):
    x, y = (np.asarray(z, np.float64).reshape(z.shape[0], -1) for z in (x, y))
    magnitudes = np.abs(x) @ np.abs(y).T
    assert_sums(got, x @ y.T, magnitudes, x.shape[1], roundings=roundings)


@pytest.mark.parametrize("way", [gramians.in_one_product, gramians.in_chunks])
@pytest.mark.parametrize("width", [16384, 16385, 20000, 24575])
def test_wide_rows_in_chunks_or_in_one_product(way, width):
    """Whole chunks, and one column more or less."""
    x, y = arrays(width)
    check(jax.jit(way)(x, y), x, y)


@pytest.mark.parametrize("width", [1, 300, 16383, 16384])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_arrays(width, dtype):
    x, y = arrays(width, dtype)
    check(gramians.cross_gramian(x, y, jnp.float32), x, y)


def factored(rows, seed, terms, m, n, layers=()):
    random = np.random.default_rng(seed)
    side = lambda size: jnp.asarray(
        random.normal(1, 1, (rows, *layers, terms, size)), jnp.float32
    )
    return co.OuterProduct(side(m), side(n), (*layers, m, n))


def exact(leaf):
    """The rows multiplied out in float64, and those of the factors' magnitudes."""
    sides = [np.asarray(side, np.float64) for side in (leaf.left, leaf.right)]
    rows = np.einsum("...tm,...tn->...mn", *sides)
    magnitudes = np.einsum("...tm,...tn->...mn", *map(np.abs, sides))
    return rows.reshape(rows.shape[0], -1), magnitudes.reshape(rows.shape[0], -1)


# T x T products of factors, and rows multiplied out in one block and in several, of
# which the last is filled up.
SHAPES = {
    "by factors": (2, 9, 7, ()),
    "multiplied out": (6, 5, 4, ()),
    "in blocks": (40, 331, 317, ()),
    "layers": (2, 9, 7, (3,)),
}


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_factored_rows(name, same):
    terms, m, n, layers = SHAPES[name]
    x = factored(B, 0, terms, m, n, layers)
    y = x if same else factored(C, 1, terms, m, n, layers)
    got = jax.jit(
        lambda x, y: gramians.cross_gramian(x, x if same else y, jnp.float32)
    )(x, y)
    (rows, sizes), (others, other_sizes) = exact(x), exact(y)
    # sums of sums: each rounds on its own
    depth = terms**2 * (m + n) * int(np.prod(layers))
    assert_sums(got, rows @ others.T, sizes @ other_sizes.T, depth)


@pytest.mark.parametrize("size", [5, 9], ids=["as a table", "by terms"])
def test_looked_up_rows(size):
    """Indices out of range read nothing, equal ones add up."""
    random = np.random.default_rng(2)
    places = jnp.array([[0, 3, 3], [-1, 2, 4], [size, 0, 1], [2, 2, 2]])
    found = jnp.asarray(random.normal(size=(4, 3, 2)), jnp.float32)
    leaf = co.OuterProduct(places, found, (size, 2))
    rows = np.zeros((4, size, 2))
    for i, t in np.ndindex(4, 3):
        if 0 <= places[i, t] < size:
            rows[i, places[i, t]] += np.asarray(found[i, t], np.float64)
    got = gramians.cross_gramian(leaf, leaf, jnp.float32)
    sizes = np.abs(np.asarray(found, np.float64)).sum((1, 2))
    assert_sums(got, *(f(rows) for f in (pairs, lambda _: np.outer(sizes, sizes))), 18)
    dense = jnp.ones((2, size, 2))
    against = gramians.cross_gramian(leaf, dense, jnp.float32)
    wanted = rows.sum((1, 2))[:, None] * np.ones((1, 2))
    terms = 2 * size
    assert_sums(against, wanted, sizes[:, None] * np.ones((1, 2)), terms)


def test_looked_up_rows_are_a_table_where_that_is_smaller():
    """No products of all pairs of terms where T^2 exceeds the lines of the table."""

    def sizes(terms, size):
        places = jax.ShapeDtypeStruct((4, terms), jnp.int32)
        found = jax.ShapeDtypeStruct((4, terms, 2), jnp.float32)
        leaf = co.OuterProduct(places, found, (size, 2))
        traced = jax.make_jaxpr(lambda x: gramians.cross_gramian(x, x, jnp.float32))
        return f"[4,4,{terms},{terms}]" in str(traced(leaf))

    assert not sizes(terms=3, size=8)
    assert sizes(terms=3, size=9)
    wide = lambda n: co.OuterProduct(
        jnp.zeros((4, 3), jnp.int32), jnp.zeros((4, 3, n)), (8, n)
    )
    assert gramians._is_small_table(wide(9))  # 8 * 9 numbers, 2 * 4 * 9 products
    assert not gramians._is_small_table(wide(10))


def pairs(rows):
    flat = rows.reshape(rows.shape[0], -1)
    return flat @ flat.T


# Rows, terms and sides, and in how many blocks rows are multiplied out, if they are.
CHEAPEST = {
    (3, 3, 10, 9): None,
    (3, 3, 9, 9): None,  # as many operations either way
    (3, 3, 8, 9): 1,
    (5, 2, 9, 7): None,
    (4, 2, 2, 2): 1,
    (5, 40, 330, 317): 1,  # a little less than 2**19 entries, a little more
    (5, 40, 331, 317): 2,
    (5, 60, 661, 317): 2,
    (5, 60, 662, 317): 3,
}


@pytest.mark.parametrize("sizes", CHEAPEST, ids=str)
def test_the_way_of_fewer_operations_in_blocks_that_stay_in_the_cache(sizes):
    b, terms, m, n = sizes
    side = lambda size: jax.ShapeDtypeStruct((b, terms, size), jnp.float32)
    leaf = co.OuterProduct(side(m), side(n), (m, n))
    traced = str(
        jax.make_jaxpr(lambda x: gramians.cross_gramian(x, x, jnp.float32))(leaf)
    )
    wanted = CHEAPEST[sizes]
    lengths = sorted(map(int, re.findall(r"length=(\d+)", traced)))
    assert lengths == ([] if wanted is None else [1, wanted])  # one elsewhere


@pytest.mark.parametrize("width", [16383, 16384, 30000])
def test_wide_rows_are_cut_where_they_fill_the_cache(width):
    x, y = arrays(width)
    of_cpu = jax.jit(lambda *given: gramians.cross_gramian(*given, jnp.float32))
    text = of_cpu.trace(x, y).lower(lowering_platforms=("cpu",)).as_text()
    assert text.count("stablehlo.while") == (width >= 16384)
    assert (f"tensor<{B}x8192xf32>" in text) == (width >= 16384)


@pytest.mark.parametrize("way", [gramians.as_one_line, gramians.line_by_line])
def test_lines_of_rows_at_once_or_one_by_one(way):
    random = np.random.default_rng(3)
    x, y = (jnp.asarray(random.normal(1, 1, (c, 4, 9)), jnp.float32) for c in (B, C))
    check(way(factored(B, 0, 2, 4, 9), x, y), x, y)


def test_a_tpu_takes_them_one_by_one():
    x = factored(4, 0, 40, 16, 24)
    gramian = jax.jit(lambda x: gramians.cross_gramian(x, x, jnp.float32)).trace(x)
    batched = {}
    for platform in ("cpu", "tpu"):
        text = gramian.lower(lowering_platforms=(platform,)).as_text()
        batched[platform] = "tensor<16x4x4xf32>" in text
    assert batched == {"cpu": False, "tpu": True}


@pytest.mark.parametrize("name", ["multiplied out", "in blocks"])
def test_squared_norms_from_rows_multiplied_out_in_blocks(name):
    terms, m, n, _ = SHAPES[name]
    x = factored(B, 0, terms, m, n)
    rows, sizes = exact(x)
    # every entry is a sum of its own
    squares = jax.jit(lambda x: gramians.squares(x, jnp.float32))(x)
    depth = terms * rows.shape[1]
    assert_sums(squares, (rows**2).sum(1), (sizes**2).sum(1), depth)


def test_squared_norms_of_looked_up_rows_one_by_one():
    random = np.random.default_rng(2)
    places = jnp.asarray(random.integers(-1, 7, (B, 9)), jnp.int32)
    found = jnp.asarray(random.normal(size=(B, 9, 4)), jnp.float32)
    rows = co.OuterProduct(places, found, (6, 4)).materialize()
    squares = gramians.squares(co.OuterProduct(places, found, (6, 4)), jnp.float32)
    np.testing.assert_allclose(squares, (rows**2).sum((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("name", ["multiplied out", "in blocks"])
def test_rows_less_one_of_them(name):
    """Nearly equal ones, of which what is left has every digit that the rows have."""
    terms, m, n, _ = SHAPES[name]
    x = factored(B, 0, terms, m, n)
    near = x.left[:1] + 1e-3 * (x.left - x.left[:1])
    x = co.OuterProduct(near, jnp.broadcast_to(x.right[:1], x.right.shape), (m, n))
    rows, sizes = exact(x)
    got = jax.jit(lambda x: gramians.gramian_about(x, jnp.int32(3), jnp.float32))(x)
    apart = rows - rows[3]
    wanted = apart @ apart.T
    # rows are rounded at their own size, and what is left of them is multiplied
    slack = terms * np.finfo(np.float32).eps * sizes.max() * np.abs(apart).sum(1).max()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2 * slack)
    assert not np.asarray(got)[3].any()
