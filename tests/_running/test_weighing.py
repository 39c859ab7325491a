"""Weights that each row decides: as it comes, and as all rows in memory would."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests._stacks import P, matrix, params, tree

ROWS = 12
KEY = jax.random.key(0)
PRIVATE = {"divisor": 4.0, "noise_multiplier": 0.1, "key": KEY}
ADAPTIVE = co.quantile_norm(2.0, expected_rows=12, count_stddev=1.0)
RULES = {
    "mean": co.mean(),
    "normalized": co.normalized_mean(),
    "normalized by leaf": co.per_leaf(co.normalized_mean()),
    "clipped by leaf": co.clipped_sum(1.5, divisor=4.0, per_leaf=True),
    "private": co.private_sum(ADAPTIVE, **PRIVATE),
    "averaged": co.ema_weights(co.normalized_mean(), ROWS),
    "transformed": co.chain(
        co.clip_examples(3.0), co.normalize_examples(), co.normalized_mean()
    ),
}
NAMES = ("plain", "far", "equal", "broken", "unlike sizes", "zeros", "nobody")


def loss(weights, batch):
    """Linear: the gradient of a row is the row."""
    inner = jax.tree.map(lambda w, x: jnp.vdot(w, x[0]), weights, batch)
    return sum(jax.tree.leaves(inner))


def stacks():
    """Rows (S, ROWS, P) and sample counts, of which a broken row has most."""
    random = np.random.default_rng(5)
    plain = random.normal(size=(ROWS, P)) + 0.5
    rows = np.tile(plain, (len(NAMES), 1, 1))
    counts = random.integers(0, 4, (len(NAMES), ROWS)).astype(np.float32)
    counts[:, 7] = 1000
    far, equal, broken, unlike, zeros, nobody = rows[1:]
    far[3] *= 1e10
    equal[:] = plain[0]
    broken[2], broken[9, 1] = np.nan, np.inf
    counts[3, 9] = 1e12
    unlike *= 10.0 ** np.linspace(-30, 25, ROWS)[:, None]
    zeros[[4, 7]] = 0
    nobody[:] = np.nan
    return rows, counts


@functools.cache
def outcomes(name, dtype, size):
    """Updates (S, P) and states, in memory or in microbatches."""
    rule, start = RULES[name], params(dtype)
    of_batch = co.value_and_reduced_grad(loss, rule, microbatch_size=size)

    def step(rows, counts):
        given = {"state": rule.init(start), "weights": counts}
        return of_batch(start, rows, **given)[1:]

    rows, counts = stacks()
    updates, states = jax.jit(jax.vmap(step))(tree(rows, dtype), jnp.asarray(counts))
    return matrix(updates, batch_ndim=1), states


F32, BF16 = jnp.float32, jnp.bfloat16
NOW = ("normalized", F32, 5)
LATER = [(name, F32, 5) for name in RULES if name != "normalized"]
LATER += [("normalized", BF16, 5), ("private", BF16, 5), ("transformed", BF16, 5)]
LATER += [("normalized by leaf", BF16, 1), ("private", F32, 1)]
CASES = [NOW, *(pytest.param(*each, marks=pytest.mark.whole_zoo) for each in LATER)]


@pytest.mark.parametrize(("name", "dtype", "size"), CASES)
def test_rows_weigh_what_they_weigh_in_memory(name, dtype, size):
    """Whatever the others are, and however uneven the microbatches."""
    wanted, known = outcomes(name, dtype, None)
    got, state = outcomes(name, dtype, size)
    # sums of 12 rows in another order, and one rounding of each coordinate
    most = 1e-5 if dtype == jnp.float32 else 2.0**-7
    gap, length = np.abs(got - wanted).max(-1), np.abs(wanted).max(-1)
    off = dict(zip(NAMES, gap / np.maximum(length, 1e-35), strict=True))
    assert max(off.values()) <= most, off
    for one, other in zip(*map(jax.tree.leaves, (state, known)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)  # counts, and norms
    moved = dict(zip(NAMES, length > 0, strict=True))
    assert moved == {**dict.fromkeys(NAMES, True), "nobody": name == "private"}


@pytest.mark.slow
def test_weights_that_are_no_numbers_agree_on_nothing():
    """Those of one microbatch tell of all."""

    def weigh(squares, roster, state):
        return roster.shares / jnp.sqrt(squares), state

    rule = co.reducer(co.Weighting(weigh, reads="norms", apart="share"))
    rows, w = jnp.eye(4, 3), jnp.ones(3)  # the last is zero
    linear = lambda w, x: jnp.vdot(w, x[0])
    for size in (None, 1):
        step = co.value_and_reduced_grad(linear, rule, microbatch_size=size)
        _, update, state = step(w, rows, state=rule.init(w))
        assert not state.consensus_ready
        assert not update.any()


def test_a_rule_of_ones_own_is_told_of_how_many_rows_it_sees_some():
    """And what all weigh: here 1 / B, and half of each share."""
    by_number = lambda _, roster, state: (
        jnp.full(roster.weights.shape, 1 / roster.num_rows),
        state,
    )
    by_share = lambda _, roster, state: (roster.shares / 2, state)
    rows, w = jnp.arange(5.0)[:, None], jnp.ones(1)
    linear = lambda w, x: jnp.vdot(w, x[0])
    for weigh, apart in ((by_number, "weight"), (by_share, "share")):
        rule = co.reducer(co.Weighting(weigh, reads="nothing", apart=apart))
        step = co.value_and_reduced_grad(linear, rule, microbatch_size=2)
        _, update, _ = step(w, rows, state=rule.init(w))
        np.testing.assert_allclose(update, [2.0 if apart == "weight" else 1.0])
