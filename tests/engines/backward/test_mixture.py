"""Rows that are mixed where they are made: what rows in memory give."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax._gradients import claims

ROWS, DEPTH, WIDTH = 6, 2, 8
MIXED = co.nearest_neighbor_mixing(2)
BUCKETS = co.bucketing(2, jax.random.key(0))
HALVED = co.scale_examples(0.5)
# Of every way to look at mixed rows one; a combination alone is one of the others.
RULES = {
    "nothing": co.after(MIXED, co.mean()),
    "fold": co.after(BUCKETS, co.sign_consensus(0.6)),
    "columns": co.after(MIXED, co.median()),
    "about": co.after(MIXED, co.krum(1)),
    "previous": co.after(BUCKETS, co.centered_clipping(0.1)),
    "per leaf": co.after(BUCKETS, co.per_leaf(co.normalized_mean())),
    "losses": co.after(MIXED, co.keep_smallest_losses(3)),
    "twice": co.after(MIXED, co.after(BUCKETS, co.mean())),
    "scaled": co.chain(
        co.clip_examples(0.1), co.after(MIXED, co.chain(HALVED, co.median()))
    ),
    "overflows": co.after(BUCKETS, co.chain(co.scale_examples(1e36), co.mean())),
}
NOW = ("overflows",)
IN_CI = ("nothing", "fold", "about")


def loss(params, batch):
    x, size = batch
    layer = lambda x, w: (jnp.tanh(x @ w), None)
    x, _ = jax.lax.scan(layer, x @ params["in"], params["layers"])
    return jnp.mean(size) * jnp.mean(x**2)


def given():
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape) / 2, jnp.float32)
    params = {"in": draw(3, WIDTH), "layers": draw(DEPTH, WIDTH, WIDTH)}
    return params, draw(ROWS, 5, 3) + 1


def stacks(x):
    """Rows as they come; equal ones; one far away; not finite; none at all."""
    size = jnp.ones(ROWS)
    yield (x, size), jnp.ones(ROWS)
    yield (x, size), jnp.array([1.0, 2, 0, 1, 3, 1])
    equal = x.at[3:].set(x[:1] + 1e-5 * x[3:])
    yield (equal, size), jnp.ones(ROWS)
    yield (x, size.at[1].set(1e4)), jnp.ones(ROWS)
    yield (x.at[2].set(jnp.nan), size.at[4].set(jnp.inf)), jnp.ones(ROWS)
    yield (x.at[2].set(jnp.nan), size), jnp.zeros(ROWS).at[2].set(1)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind,
            marks=()
            if kind in NOW
            else pytest.mark.slow
            if kind in IN_CI
            else [pytest.mark.slow, pytest.mark.whole_zoo],
        )
        for kind in RULES
    ],
)
def test_mixed_rows(kind, monkeypatch):
    """Two steps on each of all stacks; every array that may be is reduced."""
    monkeypatch.setattr(claims, "SMALL", 0)
    (params, x), rule = given(), RULES[kind]

    @functools.partial(jax.jit, static_argnums=0)
    def every(held, batches, weights):
        step = co.value_and_reduced_grad(loss, rule, hold_rows=held)

        def again(state, given):
            batch, weights = given
            *found, state = step(params, batch, state=state, weights=weights)
            return state, found

        def two(batch, weights):
            both = jax.tree.map(lambda x: jnp.stack([x, x]), (batch, weights))
            state, found = jax.lax.scan(again, rule.init(params), both)
            return found, state

        return jax.lax.map(lambda given: two(*given), (batches, weights))

    given_ = jax.tree.map(lambda *x: jnp.stack(x), *stacks(x))
    (found, state), (expected, known) = every(False, *given_), every(True, *given_)
    for name in ("num_present", "num_nonfinite", "num_accepted", "consensus_ready"):
        np.testing.assert_array_equal(getattr(state, name), getattr(known, name), name)
    assert not state.consensus_ready[-1]
    for own, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        for x, y in zip(own, other, strict=True):
            # sums of a model's rows in another order, as in test_source.py
            largest = np.abs(y).max(initial=1e-30)
            np.testing.assert_allclose(x, y, rtol=0, atol=3e-5 * largest)


def test_no_rows_are_held():
    """In the program no array has all rows of all layers."""
    params, x = given()
    step = co.value_and_reduced_grad(loss, RULES["columns"], hold_rows=False)
    state = RULES["columns"].init(params)
    batch = x, jnp.ones(ROWS)
    program = str(jax.make_jaxpr(functools.partial(step, state=state))(params, batch))
    rows = f"[{ROWS},{DEPTH},{WIDTH},{WIDTH}]"
    assert rows not in program
    assert f"[{DEPTH},{ROWS},{WIDTH},{WIDTH}]" not in program
