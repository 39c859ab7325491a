"""Averages of a rule's weights: the recurrence, absent rows, empty steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co

PARAMS = jnp.zeros(3)


def given_weights():
    """A weighting that gives what update is told: ``asked``."""
    return co.reducer(
        co.Weighting(
            lambda _, roster, state: (roster.extra["asked"], state), reads="nothing"
        )
    )


def run(reducer, steps, rows=None):
    """Updates and states of several steps, each (asked, weights)."""
    rows = jnp.eye(3) if rows is None else rows
    state, outcomes = reducer.init(PARAMS), []
    update = jax.jit(
        lambda s, a, w: reducer.update(rows, s, PARAMS, weights=w, asked=a)
    )
    for asked, weights in steps:
        asked, weights = jnp.array(asked), jnp.array(weights)
        result, state = update(state, asked, weights)
        outcomes.append((np.asarray(result), state))
    return outcomes


EVERYONE = [1.0, 1.0, 1.0]


def test_the_recurrence():
    reducer = co.ema_weights(given_weights(), 3, decay=0.75)
    steps = [([4.0, 0.0, 8.0], EVERYONE), ([0.0, 4.0, 8.0], EVERYONE)] * 2
    outcomes, average = run(reducer, steps), None
    for (asked, _), (update, state) in zip(steps, outcomes, strict=True):
        asked = np.array(asked)
        average = asked if average is None else 0.75 * average + 0.25 * asked
        np.testing.assert_allclose(update, average, rtol=1e-6)
        np.testing.assert_allclose(state.rule_state.average, average, rtol=1e-6)


def test_an_absent_row_has_no_weight_and_keeps_its_average():
    reducer = co.ema_weights(given_weights(), 3, decay=0.5)
    outcomes = run(
        reducer,
        [
            ([1.0, 1.0, np.nan], [1.0, 1.0, 0.0]),
            ([3.0, 9.0, 5.0], [1.0, 0.0, 1.0]),
            ([1.0, 3.0, 1.0], EVERYONE),
        ],
    )
    np.testing.assert_array_equal(outcomes[0][0], [1, 1, 0])
    assert outcomes[0][1].rule_state.seen.tolist() == [True, True, False]
    np.testing.assert_array_equal(outcomes[1][0], [2, 0, 5])
    np.testing.assert_array_equal(outcomes[1][1].rule_state.average, [2, 1, 5])
    np.testing.assert_array_equal(outcomes[2][0], [1.5, 2, 3])


@pytest.mark.parametrize("nothing", [[0.0, 0, 0], [np.nan, 1, 1], [np.inf, 0, 0]])
def test_where_the_rule_agrees_on_nothing_the_average_stays(nothing):
    reducer = co.ema_weights(given_weights(), 3)
    outcomes = run(reducer, [([1.0, 2.0, 3.0], EVERYONE), (nothing, EVERYONE)])
    update, state = outcomes[1]
    np.testing.assert_array_equal(update, 0)
    assert not state.consensus_ready
    np.testing.assert_array_equal(state.rule_state.average, [1, 2, 3])


def test_a_schedule_of_decays():
    rising = lambda step: jnp.where(step < 1, 0.0, 1.0)
    reducer = co.ema_weights(given_weights(), 3, decay=rising)
    steps = [([1.0, 2.0, 3.0], EVERYONE), ([5.0, 5.0, 5.0], EVERYONE)]
    np.testing.assert_array_equal(run(reducer, steps)[1][0], [1, 2, 3])


def test_a_rule_that_remembers_and_one_by_leaf():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), jnp.float32)
    for rule in (co.centered_clipping(1.0), co.per_leaf(co.subspace_weighting())):
        plain = jax.jit(rule.update)(rows, rule.init(PARAMS), PARAMS)[0]
        reducer = co.ema_weights(rule, 3)
        got, state = jax.jit(reducer.update)(rows, reducer.init(PARAMS), PARAMS)
        np.testing.assert_allclose(got, plain, rtol=1e-5, atol=1e-6)
        described = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
        assert described(state) == described(reducer.init(PARAMS))


def test_selectors_can_be_averaged():
    among = co.among(co.ema_weights(co.mgda(), 3), co.mean())
    update, state = jax.jit(among.update)(jnp.eye(3), among.init(PARAMS), PARAMS)
    np.testing.assert_allclose(update, 1 / 3, rtol=1e-5)
    assert state.consensus_ready


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`rule` must be made of a Weighting"):
        co.ema_weights(co.sign_consensus(), 3)
    with pytest.raises(ValueError, match="`rule` must be a reducer of this library"):
        co.ema_weights("mgda", 3)
    with pytest.raises(ValueError, match="`num_rows` must be at least 1; got 0"):
        co.ema_weights(co.mean(), 0)
    with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\]; got 1.5"):
        co.ema_weights(co.mean(), 3, 1.5)
    reducer = co.ema_weights(co.mean(), 4)
    with pytest.raises(ValueError, match=r"`num_rows` must be .* got 4, but .* are 3"):
        reducer.update(jnp.eye(3), reducer.init(PARAMS), PARAMS)
