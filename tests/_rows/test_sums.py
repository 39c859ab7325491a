"""Rows that are sums of products of several kinds, and one array that all share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax._rows import verbs
from consensus_optax._rows.finite import cleared, finite_rows, spoiled
from consensus_optax._rows.norm_bounds import squared_norm_bounds
from consensus_optax._rows.statistics import MINMOD, MOMENTS, WEIGHTED_SUM
from consensus_optax._rows.sums import SumOfProducts
from consensus_optax._rules.kinds import Roster
from consensus_optax._running.blocks import reduce_columns
from tests._models import assert_close

B, T, M, N, LAYERS = 5, 3, 6, 4, 2


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def dense(*layers):
    sides = draw(0, B, *layers, T, M), draw(1, B, *layers, T, N)
    steps = (("transpose", (1, 0)),) if not layers else ()
    return co.OuterProduct(*sides, row_shape=(*layers, M, N), steps=steps)


def looked_up():
    """Indices twice the same, and one outside of the table."""
    index = jnp.asarray(np.random.default_rng(2).integers(0, M, (B, 4)))
    index = index.at[0, 0].set(index[0, 1]).at[1, 0].set(M)
    return dataclasses.replace(dense(), left=index, right=draw(3, B, 4, N))


def one_array(like, *layers):
    size = M * N
    left, right = draw(4, 1, *layers, 1, size), draw(5, B, *layers, 1, 1)
    return dataclasses.replace(like, left=left, right=right)


SUMS = {
    "dense and one array": lambda: (dense(), one_array(dense())),
    "table and one array": lambda: (looked_up(), one_array(dense())),
    "dense and table": lambda: (dense(), looked_up()),
    "all three": lambda: (looked_up(), dense(), one_array(dense())),
    "layers and one array": lambda: (dense(LAYERS), one_array(dense(LAYERS), LAYERS)),
}
kinds = pytest.mark.parametrize("kind", SUMS)


def taken_apart(leaf):
    """As after a tree function: every row has its own copy of what all share."""
    return jax.tree.map(lambda x: x, leaf)


@pytest.mark.parametrize("see", [lambda leaf: leaf, taken_apart], ids=["", "apart"])
@kinds
def test_verbs_are_those_of_the_rows_multiplied_out(kind, see):
    leaf = SumOfProducts(SUMS[kind]())
    rows = sum(np.asarray(part.materialize(), np.float64) for part in leaf.parts)
    rows = jnp.asarray(rows, jnp.float32)
    weights = jnp.asarray([1.0, 0.0, 2.0, 1.0, 0.5])
    order = jnp.asarray([0, 0, 2, 3, 4], jnp.int32)
    direction = draw(9, *rows.shape[1:])
    told = Roster(weights, jnp.zeros((), jnp.int32), {})
    median = lambda stack, weights: jnp.median(stack, 0)
    statistics = (WEIGHTED_SUM, MINMOD, MOMENTS)
    mix = verbs.Mixed(draw(8, 3, B), leaf, jnp.arange(B))

    def of(leaf):
        mixed = mix._replace(leaf=leaf)
        return {
            "array": verbs.as_array(leaf, jnp.float32),
            "norms": verbs.squared_norms(leaf, jnp.float32),
            "gramian": verbs.gramian(leaf, jnp.float32),
            "mixed": verbs.gramian(mixed, jnp.float32),
            "combined": verbs.combine(leaf, weights, order),
            "mixed, combined": verbs.combine(mixed, jnp.ones(3), jnp.arange(3)),
            "folded": verbs.fold(leaf, statistics, weights, order),
            "inner": verbs.inner_products(leaf, direction),
            "signs": verbs.gramian(verbs.signs(leaf, jnp.float32), jnp.float32),
            "centered": verbs.centered(leaf, weights / 4.5, order),
            "columns": reduce_columns(median, [leaf], told),
            "finite": finite_rows([leaf], jnp.float32).astype(jnp.float32),
            "scaled": verbs.as_array(verbs.scale(leaf, weights), jnp.float32),
            "times": verbs.as_array(verbs.times(leaf, jnp.float32(3)), jnp.float32),
            "cleared": verbs.as_array(cleared(leaf, weights > 0), jnp.float32),
            "some": verbs.as_array(leaf[1:3], jnp.float32),
        }

    # not as an argument of what is compiled, which takes it apart
    got, wanted = jax.jit(lambda: (of(see(leaf)), of(rows)))()
    for name, value in got.items():
        # sums of at most B M N = 120 float32 products, of parts that cancel in part
        jax.tree.map(lambda x, y: assert_close(x, y, 2e-5), value, wanted[name])


@kinds
def test_bounds_of_norms(kind):
    """No less than the norm as float64 has it, and close to it."""
    leaf = SumOfProducts(SUMS[kind]())
    rows = sum(np.asarray(part.materialize(), np.float64) for part in leaf.parts)
    norms = np.linalg.norm(rows.reshape(B, -1), axis=1)
    bounds = np.sqrt(jax.jit(lambda: squared_norm_bounds(leaf, jnp.float32))())
    assert (bounds >= norms).all()
    assert_close(bounds, norms, 1e-3)  # of products that are 1e3 roundings each


def test_bounds_of_rows_whose_parts_cancel():
    array = one_array(dense())
    ones = dataclasses.replace(array, right=jnp.ones((B, 1, 1)))
    other = dataclasses.replace(dense(), left=draw(0, B, 1, M), right=draw(1, B, 1, N))
    row = other.materialize()[0].T.reshape(1, 1, -1)
    leaf = SumOfProducts((other, dataclasses.replace(ones, left=-row)))
    bounds = squared_norm_bounds(leaf, jnp.float32)
    assert bounds[0] > 0
    assert np.sqrt(bounds[0]) < 1e-2 * np.linalg.norm(row)
    assert (verbs.squared_norms(leaf, jnp.float32) >= 0).all()


@pytest.mark.slow
@kinds
def test_rows_that_are_not_finite(kind):
    leaf = SumOfProducts(SUMS[kind]())
    sound = jnp.asarray([True, False, True, True, True])
    assert finite_rows([leaf], jnp.float32).all()
    np.testing.assert_array_equal(
        finite_rows([spoiled(leaf, sound)], jnp.float32), sound
    )
    far = jnp.asarray([1.0, 1e38, 1, 1, 1])
    beyond = verbs.scale(verbs.times(leaf, jnp.float32(1e2)), far)
    np.testing.assert_array_equal(finite_rows([beyond], jnp.float32), sound)


def test_arithmetic_is_refused():
    leaf = SumOfProducts(SUMS["dense and one array"]())
    for wrong in (lambda: leaf + 1, lambda: leaf.mean(0), lambda: jnp.sum(leaf)):
        with pytest.raises((TypeError, AttributeError), match="reducer is missing"):
            wrong()
    with pytest.raises(TypeError, match="reducer is missing"):
        jax.tree.map(lambda x: 0.5 * x, leaf)
    params = {"w": jnp.zeros((N, M))}
    rule = co.mean()
    halved = jax.tree.map(lambda x: x[:, :1] if x.ndim > 2 else x, {"w": leaf})
    with pytest.raises(ValueError, match="factors"):
        rule.update(halved, rule.init(params), params)


def emptied(part):
    """Rows 1 and 2 of zeros: one factor is none, the other has no float as a square."""
    if part.is_look_up or part.is_one_array:
        return dataclasses.replace(part, right=part.right.at[1:3].set(0))
    left = part.left.at[1].set(0).at[2].multiply(1e25)
    right = part.right.at[1].multiply(1e25).at[2].set(0)
    return dataclasses.replace(part, left=left, right=right)


ALONE = {
    "vectors": lambda: (co.OuterProduct(draw(0, B, 1, M), draw(1, B, 1, N), (M, N)),),
    "wide": lambda: (co.OuterProduct(draw(0, B, 2, 30), draw(1, B, 2, 40), (30, 40)),),
    "dense": lambda: (dense(),),
    "table": lambda: (looked_up(),),
    "one array": lambda: (one_array(dense()),),
    "layers": lambda: (dense(LAYERS),),
}


@pytest.mark.parametrize("kind", [*ALONE, *SUMS])
def test_a_row_of_zeros_has_products_of_zero(kind):
    parts = tuple(map(emptied, (ALONE | SUMS)[kind]()))
    leaf = SumOfProducts(parts) if len(parts) > 1 else parts[0]
    rows = sum(np.asarray(part.materialize(), float) for part in parts)
    flat = rows.reshape(B, -1)
    assert not flat[1:3].any()
    gramian = np.asarray(verbs.gramian(leaf, jnp.float32))
    squares = np.asarray(verbs.squared_norms(leaf, jnp.float32))
    assert not gramian[1:3].any()
    assert not gramian[:, 1:3].any()
    assert not squares[1:3].any()
    assert finite_rows([leaf], jnp.float32).all()
    others = [0, 3, 4]
    wanted = flat @ flat.T
    terms = T * N * M  # and as many roundings
    pairs = np.ix_(others, others)
    close = {"rtol": terms * 2.0**-23, "atol": terms * 2.0**-23}
    np.testing.assert_allclose(gramian[pairs], wanted[pairs], **close)
    np.testing.assert_allclose(squares[others], wanted.diagonal()[others], **close)
