"""Which way of folding and multiplying is taken on which platform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax._rows import statistics, verbs
from consensus_optax._rows.finite import finite_rows

B, ORDER = 6, jnp.array([1, 1, 2, 3, 1, 5])


def loops(fun, platform, *shapes):
    """Loops in a program as it is handed to the compiler of a platform."""
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    lowered = jax.jit(fun).trace(*given).lower(lowering_platforms=(platform,))
    return lowered.as_text().count("stablehlo.while")


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
def test_only_a_cpu_goes_row_by_row_and_chunk_by_chunk(platform):
    fold = lambda leaf: verbs.fold(leaf, (statistics.MINMOD,), jnp.ones(B), ORDER)
    gramian = lambda leaf: verbs.gramian(leaf, jnp.float32)
    on_cpu = platform == "cpu"
    assert loops(fold, platform, (B, 4)) == on_cpu
    assert loops(gramian, platform, (B, 40_000)) == on_cpu
    assert loops(gramian, platform, (B, 4_000)) == 0


def test_the_other_way_of_folding_gives_the_same(monkeypatch):
    """What no order of merging can change, to the bit."""
    take = lambda *args, default, **platforms: default(*args)
    random = np.random.default_rng(0)
    rows = jnp.asarray(random.normal(size=(B, 4, 3)), jnp.float32).at[0].set(jnp.nan)
    weights = jnp.array([0, 2.0, 1, 1, 0, 3])
    fold = functools.partial(verbs.fold, weights=weights, order=ORDER)
    every = (statistics.MINMOD, statistics.WEIGHTED_SIGN, statistics.LARGEST_NEGATIVE)
    on_cpu = fold(rows, every)
    monkeypatch.setattr(verbs.lax, "platform_dependent", take)
    for got, wanted in zip(fold(rows, every), on_cpu, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_rows_that_no_mixture_takes_are_not_read():
    """Of mixed rows: what has no weight in any of them may be nan."""
    rows = jnp.array([[1.0, 2], [jnp.nan, jnp.inf], [3, -1], [2, 2]])
    matrix = jnp.array([[0.5, 0, 0.5, 0], [0, 0, -1, 2]])
    mixed = verbs.Mixed(matrix, rows, jnp.array([0, 0, 2, 3]))
    wanted = np.array([[2, 0.5], [1, 5.0]])
    np.testing.assert_array_equal(verbs.as_array(mixed, jnp.float32), wanted)
    np.testing.assert_array_equal(verbs.gramian(mixed, jnp.float32), wanted @ wanted.T)
    direction = jnp.array([1.0, 2])
    got = verbs.inner_products(mixed, direction)
    np.testing.assert_array_equal(got, wanted @ [1, 2])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_is_finite_where_its_factors_of_all_layers_are(side):
    factors = {"left": jnp.ones((3, 2, 1, 4)), "right": jnp.ones((3, 2, 1, 5))}
    factors[side] = factors[side].at[1, 1, 0, 3].set(jnp.nan)
    leaf = co.OuterProduct(**factors, row_shape=(2, 4, 5))
    assert finite_rows([leaf], jnp.float32).tolist() == [True, False, True]
