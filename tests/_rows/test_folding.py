"""Rows merged in turn, as on a CPU, and at once, as elsewhere: both called here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax._rows import folding, statistics
from consensus_optax._rows.outer_product import OuterProduct
from consensus_optax._rules.kinds import Roster
from tests._bounds import assert_sums

ROWS, M, N = 7, 5, 6
# One of each kind: sums with a short cut, the same of signs, extremes, what may stop
# early, several arrays together.
KINDS = {
    "WEIGHTED_SUM": lambda rows, w: (w * rows).sum(0),
    "WEIGHTED_SIGN": lambda rows, w: (w * np.sign(rows)).sum(0),
    "SMALLEST_POSITIVE": lambda rows, w: np.where(rows > 0, rows, np.inf).min(0),
    "MINMOD": lambda rows, w: np.where(
        (rows > 0).all(0), rows.min(0), np.where((rows < 0).all(0), rows.max(0), 0)
    ),
}
LEAVES = ["vectors", "several terms", "look-ups", "half precision"]


def leaf_of(kind):
    random = np.random.default_rng(LEAVES.index(kind))
    draw = lambda *shape: jnp.asarray(random.normal(1, 0.7, shape), jnp.float32)
    if kind == "look-ups":
        places = jnp.asarray(random.integers(-1, M + 1, (ROWS, 4)))
        return OuterProduct(places, draw(ROWS, 4, N), (M, N))
    terms = 1 if kind == "vectors" else 3
    leaf = OuterProduct(draw(ROWS, terms, M), draw(ROWS, terms, N), (M, N))
    if kind == "half precision":
        factors = (x.astype(jnp.bfloat16) for x in (leaf.left, leaf.right))
        return OuterProduct(*factors, (M, N), dtype=np.dtype("float32"))
    return leaf


@pytest.mark.parametrize("kind", LEAVES)
@pytest.mark.parametrize("rows_at_once", [ROWS, 3, 1])
@pytest.mark.parametrize("absent", [pytest.param(False, marks=pytest.mark.slow), True])
def test_products_in_turn_and_at_once(kind, rows_at_once, absent, monkeypatch):
    """Three rows at a time: the last block overlaps the one before."""
    monkeypatch.setattr(folding, "_ENTRIES", rows_at_once * M * N)
    leaf = leaf_of(kind)
    weights = np.linspace(0.5, 2, ROWS).astype(np.float32)
    weights[[2, 6]] *= 1 - absent
    roster = Roster(jnp.asarray(weights), jnp.int32(0), {})
    asked = tuple(getattr(statistics, name) for name in KINDS)
    rows = np.asarray(leaf.materialize(), np.float64)[weights > 0]
    lost = jnp.where(weights[:, None, None] > 0, leaf.right, jnp.nan)  # never counts
    leaf = dataclasses.replace(leaf, right=lost)
    own = weights[weights > 0, None, None].astype(float)
    ways = folding.products_in_turn, folding.products_at_once
    for way in (*ways, folding.products_if_needed):
        run = jax.jit(
            lambda leaf, way=way: way(leaf, asked, roster.weights, roster.order)
        )
        for got, (name, reference) in zip(run(leaf), KINDS.items(), strict=True):
            wanted = reference(rows, own)
            size = np.abs(rows * own).sum(0)
            finite = np.isfinite(wanted)
            np.testing.assert_array_equal(np.isfinite(got), finite, err_msg=name)
            # of rows that are sums of up to 4 rounded products themselves
            assert_sums(
                np.asarray(got)[finite], wanted[finite], size[finite], ROWS, roundings=8
            )


def test_moments_at_once_are_those_in_turn(monkeypatch):
    monkeypatch.setattr(folding, "_ENTRIES", 3 * M * N)
    leaf, weights = leaf_of("several terms"), jnp.ones(ROWS).at[4].set(0)
    roster = Roster(weights, jnp.int32(0), {})
    given = (statistics.MOMENTS,), weights, roster.order
    one = jax.jit(lambda leaf: folding.products_in_turn(leaf, *given))(leaf)
    other = jax.jit(lambda leaf: folding.products_at_once(leaf, *given))(leaf)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)  # merges of six rows


VOTES = statistics.WEIGHTED_SIGN, statistics.NONZERO_WEIGHT
EXTREMES = statistics.SMALLEST_POSITIVE, statistics.LARGEST_NEGATIVE


@pytest.mark.parametrize("agreeing", [False, True])
@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize(
    "asked", [(statistics.MINMOD,), (*VOTES, *EXTREMES)], ids=["unanimous", "quorum"]
)
def test_what_matters_nowhere_is_left_out_on_a_tpu(asked, absent, agreeing):
    """Coordinates of the update, of rows of which one is against all or none is."""
    leaf = leaf_of("vectors")
    against = jnp.ones((ROWS, 1, 1)).at[3].set(1 if agreeing else -1)
    side = jnp.abs(leaf.left) * against
    leaf = OuterProduct(side, jnp.abs(leaf.right), (M, N))
    weights = jnp.ones(ROWS).at[2].set(1 - absent)
    order = Roster(weights, jnp.int32(0), {}).order
    matters = lambda votes, there: jnp.abs(votes) == there
    run = lambda way, *more: jax.jit(lambda x: way(x, asked, weights, order, *more))
    got = run(folding.products_if_needed, matters)(leaf)
    wanted = run(folding.products_at_once)(leaf)
    for statistic, x, y in zip(asked, got, wanted, strict=True):
        told = statistic in VOTES
        np.testing.assert_array_equal(x, y if told or agreeing else 0)
    assert bool(np.any(got[-1] != 0)) == agreeing


def test_the_platform_decides_where_the_program_is_lowered():
    """No loop over rows for an accelerator, whatever compiles it."""
    stack = jnp.ones((ROWS, 300))
    order = jnp.arange(ROWS)
    fold = lambda stack: folding.fold_array(
        stack, (statistics.MINMOD,), jnp.ones(ROWS), order
    )
    for platform in ("cpu", "cuda", "tpu"):
        lowered = jax.jit(fold).trace(stack).lower(lowering_platforms=(platform,))
        assert ("stablehlo.while" in lowered.as_text()) is (platform == "cpu")


def test_rows_of_products_are_looked_up_once_on_an_accelerator():
    """Not anew for every entry: what is looked up stands before what multiplies it."""
    leaf, weights = leaf_of("vectors"), jnp.ones(ROWS).at[2].set(0)
    order = Roster(weights, jnp.int32(0), {}).order
    given = (statistics.MINMOD,), weights, order, None
    fold = lambda leaf: folding.fold_products(leaf, *given)
    for platform in ("cuda", "tpu"):
        lowered = jax.jit(fold).trace(leaf).lower(lowering_platforms=(platform,))
        looked_up, after = lowered.as_text().split("stablehlo.optimization_barrier")
        assert looked_up.count('"stablehlo.gather"(') == 2
        assert "stablehlo.gather" not in after
