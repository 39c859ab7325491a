"""Rows that share their left factor, as those of several losses do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax._rows import verbs
from consensus_optax._rows.finite import finite_rows
from consensus_optax._rows.folding import products_at_once, products_if_needed
from consensus_optax._rows.outer_product import restored
from consensus_optax._rows.statistics import MINMOD, WEIGHTED_MAGNITUDE, WEIGHTED_SUM
from consensus_optax._rows.views import (
    reshaped,
    row_matrix,
    shared_left,
    transposed,
    unshared,
)
from consensus_optax._rules.kinds import Roster
from consensus_optax._running.blocks import reduce_columns
from tests._models import assert_close

pytestmark = pytest.mark.slow

B = 5
RNG = np.random.default_rng(0)
STATISTICS = (MINMOD, WEIGHTED_MAGNITUDE, WEIGHTED_SUM._replace(of_products=None))


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def shared():
    """Leaves with one left factor for five rows."""
    table = jnp.asarray(RNG.integers(-1, 7, (1, 3)))
    few = jnp.asarray(RNG.integers(0, 3, (1, 9)))
    terms = co.OuterProduct(draw(1, 3, 6), draw(B, 3, 7), (6, 7))
    layers = co.OuterProduct(draw(1, 4, 2, 6), draw(B, 4, 2, 4), (2, 2, 6, 4))
    return {
        "one term": co.OuterProduct(draw(1, 1, 6), draw(B, 1, 7), (6, 7)),
        "terms": terms,
        "many terms": co.OuterProduct(draw(1, 40, 3), draw(B, 40, 4), (3, 4)),
        "moved": transposed(terms, (1, 0)),
        "layers moved": reshaped(transposed(layers, (2, 0, 3, 1)), (12, 8)),
        "look-up": co.OuterProduct(table, draw(B, 3, 4), (6, 4)),
        "look-up, many": co.OuterProduct(few, draw(B, 9, 2), (3, 2)),
    }


@pytest.mark.standard_promotion
def test_every_verb_is_that_of_the_rows_multiplied_out():
    order, weights = jnp.array([0, 1, 1, 3, 4]), jnp.array([1.0, -2, 0, 3, 0.5])
    present = Roster(jnp.abs(weights), jnp.int32(0), {})
    middle = lambda stack, weights: stack[0] + 2 * stack[3]

    def every_verb(leaf, direction):
        mixed = verbs.Mixed(jnp.eye(B)[::-1] + 0.5, leaf, jnp.arange(B))
        factored = co.is_outer_product(leaf) and leaf.num_layers is None
        at_once = verbs.fold(leaf, STATISTICS, weights, order)
        for fold in (products_at_once, products_if_needed) if factored else ():
            given = (leaf, STATISTICS, weights, order)
            at_once = (*at_once, *(restored(leaf, x) for x in fold(*given)))
        if not factored:
            at_once *= 3 if not co.is_outer_product(leaf) else 1
        return [
            verbs.gramian(leaf, jnp.float32),
            verbs.cross_gramian(leaf, verbs.scale(leaf, weights), jnp.float32),
            *(verbs.squared_norms(of, jnp.float32) for of in (leaf, mixed)),
            *(verbs.combine(of, weights, order) for of in (leaf, mixed)),
            *(verbs.inner_products(of, direction) for of in (leaf, mixed)),
            verbs.as_array(verbs.scale(leaf, weights), jnp.float32),
            verbs.as_array(verbs.signs(leaf, jnp.float32), jnp.float32),
            *verbs.centered(leaf, present.shares, order),
            finite_rows([leaf], jnp.float32),
            *(reduce_columns(middle, [leaf], present)),
            *at_once,
        ]

    leaves = shared()

    @jax.jit
    def all_verbs(direction):
        return {
            name: [
                every_verb(of, direction[name])
                for of in (leaf, unshared(leaf), leaf.materialize())
            ]
            for name, leaf in leaves.items()
        }

    directions = {name: draw(*leaf.shape[1:]) for name, leaf in leaves.items()}
    for name, (ours, own, arrays) in all_verbs(directions).items():
        assert leaves[name].is_shared
        for x, y, z in zip(ours, own, arrays, strict=False):
            assert_close(x, z, 3e-6)  # float32 rounding of some tens of terms
            assert_close(y, z, 3e-6)
        assert len(ours) == len(own)


def test_a_row_and_rows_that_are_moved():
    for leaf in shared().values():
        rows = np.asarray(leaf.materialize())
        for i in (0, 3):
            assert_close(restored(leaf, row_matrix(leaf, i)), rows[i], 2e-6)
        for select in (
            lambda x: x[1:4],
            lambda x: x[jnp.array([4, 0])],
            lambda x: jnp.concatenate([x, x[2:]]),
        ):
            moved = jax.tree.map(select, leaf)
            assert not moved.is_shared  # a tree function sees the factors of each row
            np.testing.assert_allclose(moved.materialize(), select(rows), rtol=1e-5)
        crossed = jax.jit(lambda x: x)(leaf)
        assert crossed.is_intact
        np.testing.assert_allclose(crossed.materialize(), rows, rtol=1e-5)


def test_what_was_shared_on_the_right():
    for row_shape, left, right in (
        ((6, 7), draw(B, 3, 6), draw(1, 3, 7)),
        ((2, 3, 7), draw(B, 3, 6), draw(1, 3, 7)),
        ((4, 6, 7, 1), draw(B, 4, 2, 6), draw(1, 4, 2, 7)),
    ):
        leaf = co.OuterProduct(left, right, row_shape)
        wide = jnp.broadcast_to(right, (B, *right.shape[1:]))
        wanted = dataclasses.replace(leaf, right=wide).materialize()
        assert_close(shared_left(leaf).materialize(), wanted, 2e-6)


def test_nothing_of_all_rows_is_multiplied_out_or_copied():
    """Compiled, a weighting of three rows has no array of three left factors."""
    left, right = draw(1, 8, 96), draw(3, 8, 80)
    rule, params = co.mgda(), jnp.zeros((96, 80))

    def step(left, right):
        rows = co.OuterProduct(left, right, (96, 80))
        return rule.update(rows, rule.init(params), params)[0]

    program = jax.jit(step).lower(left, right).compile().as_text()
    assert "f32[3,8,80]" in program
    for shape in ("f32[3,8,96]", "f32[3,96,80]", "f32[3,7680]"):
        assert f"= {shape}" not in program


def test_a_row_of_weight_zero_is_not_read():
    right = draw(B, 3, 7).at[2].set(jnp.nan)
    leaf = co.OuterProduct(draw(1, 3, 6), right, (6, 7))
    rule, params = co.mean(), jnp.zeros((6, 7))
    update, state = jax.jit(
        lambda: rule.update(leaf, rule.init(params), params, weights=jnp.ones(B))
    )()
    keep = [0, 1, 3, 4]
    assert_close(update, leaf.materialize()[jnp.array(keep)].mean(0), 2e-6)
    assert state.num_nonfinite == 1
