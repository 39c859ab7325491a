"""What the interpreter adds to what a rule decides: memory, counts, who is left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests.zoo.own import heavy_ball

PARAMS = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
STEPS, ROWS = 4, 5


def rows_of_steps():
    random = np.random.default_rng(4)
    draw = lambda leaf: random.normal(1, 1, (STEPS, ROWS, *leaf.shape)).astype("f4")
    return jax.tree.map(draw, PARAMS)


def updates_of(reducer, rows):
    """Those of all steps, and the last state."""
    step = lambda state, now: reducer.update(now, state, PARAMS)[::-1]
    state, updates = jax.jit(lambda: jax.lax.scan(step, reducer.init(PARAMS), rows))()
    return updates, state.rule_state


def each_leaf_its_own():
    """The mean, and another share of the previous update for every leaf."""

    def init(params, dtype):
        del params
        return jnp.full((), 0.5, dtype)

    def weigh(products, roster, share):
        return jnp.append(roster.shares, share), share / 2

    weighting = co.Weighting(weigh, init, reads="gramian", remembers=True)
    return co.per_leaf(co.reducer(weighting))


@pytest.mark.parametrize(
    ("reducer", "shares"),
    [(heavy_ball(), [0.9] * STEPS), (each_leaf_its_own(), 0.5 ** np.arange(1, 5))],
    ids=["whole", "by leaf"],
)
def test_a_rule_adds_its_share_of_the_previous_update(reducer, shares):
    rows = rows_of_steps()
    updates, state = updates_of(reducer, rows)
    for name, leaf in rows.items():
        update = np.zeros(PARAMS[name].shape)
        for now, share, got in zip(leaf, shares, updates[name], strict=True):
            update = now.astype(float).mean(0) + share * update
            # of five rows and what is remembered of four steps, of order one
            np.testing.assert_allclose(got, update, rtol=0, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, state.previous, last_of(updates))


def last_of(updates):
    return jax.tree.map(lambda leaf: leaf[-1], updates)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 2)], ids=str)
def test_the_share_of_coordinates_that_move(shape):
    """One of all that there are, however few; a model without any moves nothing."""
    params, rule = jnp.zeros(shape), co.sign_consensus()
    rows = jnp.ones((3, *shape)).at[0].multiply(-1).at[:, *[0] * len(shape)].set(2)
    _, state = rule.update(rows, rule.init(params), params)
    assert state.consensus_ratio == np.float32(1) / max(params.size, 1)
    empty = jnp.zeros((3, 0))
    _, state = rule.update(empty, rule.init(empty[0]), empty[0])
    assert state.consensus_ratio == 0
    assert not state.consensus_ready


@pytest.mark.parametrize("absent", [0.0, np.nan])
def test_what_a_rule_says_of_absent_rows_is_not_heard(absent):
    """Nor is anything that it says, where a weight of a row that is there is none."""
    given = jnp.array([1.0, absent, 1.0])
    weighting = co.Weighting(lambda _, roster, state: (given, state), reads="nothing")
    rule, params = co.reducer(weighting), jnp.zeros(2)
    rows = jnp.array([[1.0, 2.0], [np.nan, 5.0], [3.0, 4.0]])
    step = lambda weights: rule.update(rows, rule.init(params), params, weights=weights)
    update, state = step(jnp.ones(3))
    assert (update.tolist(), bool(state.consensus_ready)) == ([4, 6], True)
    update, state = step(jnp.array([1.0, 1.0, 0.0]))
    assert update.tolist() == [1, 2]
    rows = rows.at[1].set(7)
    update, state = step(jnp.ones(3))
    sound = absent == 0
    assert (update.tolist(), bool(state.consensus_ready)) == (
        [4 * sound, 6 * sound],
        sound,
    )


def test_a_parameter_may_have_more_coordinates_than_int32_counts():
    """Traced alone: as an integer their number could not be divided by."""
    params = jax.ShapeDtypeStruct((2**16, 2**15 + 1), jnp.float32)
    rows = jax.ShapeDtypeStruct((2, *params.shape), jnp.float32)
    for reducer in (co.sign_consensus(magnitude="agreeing_mean"), co.sand_mask()):
        state = jax.eval_shape(reducer.init, params)
        update, _ = jax.eval_shape(reducer.update, rows, state, params)
        assert update.shape == params.shape
