"""GradVac over several steps, against plain loops and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests._pinned import LARGE, SMALL, first_update
from tests._reference_surgery import grad_vac

pytestmark = pytest.mark.slow

KEY = jax.random.key(5)


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_equals_the_loop_over_several_steps(decay):
    """Rows that share a direction: targets rise, and rows that agree are changed too.

    Rounding of a Gramian is squared, and the next step's target carries it on: 1e-4 of
    the largest entry.
    """
    random = np.random.default_rng(3)
    steps = (random.normal(size=(6, 5, 8)) + 0.6).astype(np.float32)
    rule, params, target = co.grad_vac(KEY, 5, decay), jnp.zeros(8), np.zeros((5, 5))
    state, update = rule.init(params), jax.jit(rule.update)
    agreeing = 0
    for step, rows in enumerate(steps):
        agreeing += np.sum((rows @ rows.T > 0) & (target > 0.05))
        wanted = grad_vac(KEY, decay, step, target)(rows.tolist(), [1.0] * 5)
        got, state = update(jnp.asarray(rows), state, params)
        size = np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * size)
        np.testing.assert_allclose(state.rule_state.target, target, rtol=0, atol=1e-4)
    assert agreeing or decay == 0.99


@pytest.mark.parametrize("rows", [SMALL, LARGE], ids=["small", "large"])
def test_pinned_stacks(rows):
    """Nothing is divided by what cancels: 1e-4 of the largest entry, as of PCGrad."""
    rule = lambda rows, weights: grad_vac(KEY)(rows, weights)
    for weights in (np.ones(len(rows)), 0.5 + np.arange(len(rows)) % 3):
        wanted = rule(rows.tolist(), weights.tolist())
        got = first_update(co.grad_vac(KEY, len(rows)), rows, weights)
        size = np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * size)


def test_the_first_step_is_that_of_pcgrad():
    for rows in (SMALL, LARGE):
        got = first_update(co.grad_vac(KEY, len(rows)), rows)
        wanted = first_update(co.pcgrad(KEY), rows)
        np.testing.assert_allclose(
            got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max()
        )


def test_rows_are_brought_up_to_their_usual_cosine():
    """Two rows of length 1 at a right angle, whose target is 0.6, by hand."""
    rule, params = co.grad_vac(KEY, 2), jnp.zeros(2)
    state = rule.init(params)
    usual = state.rule_state._replace(target=jnp.full((2, 2), 0.6))
    update, state = rule.update(jnp.eye(2), state._replace(rule_state=usual), params)
    np.testing.assert_allclose(update, [1.75, 1.75], rtol=1e-6)  # 1 + 0.6 / 0.8
    target = state.rule_state.target
    np.testing.assert_allclose([target[0, 1], target[1, 0]], 0.594, rtol=1e-6)
    np.testing.assert_allclose(target.diagonal(), 0.6, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_parallel_rows_give_their_sum_however_often(decay):
    """Targets come to 1, where what rounding leaves of an angle must decide nothing.

    No cosine is below 0.9999, so nothing is added: the sum, to its rounding.
    """
    direction = np.random.default_rng(0).normal(size=(1, 20)).astype(np.float32)
    rule, params = co.grad_vac(KEY, 4, decay), jnp.zeros(20)

    def step(state, step_key):
        rows = direction * jnp.exp(jax.random.normal(step_key, (4, 1)))
        update, state = rule.update(rows, state, params)
        return state, (update, rows.sum(0))

    keys = jax.random.split(KEY, 500)
    state, (updates, sums) = jax.lax.scan(step, rule.init(params), keys)
    np.testing.assert_allclose(updates, sums, rtol=1e-6, atol=1e-6)
    assert state.rule_state.target[0, 1] > 0.999


def test_rows_that_were_parallel_and_turn_stay_finite():
    params, rule = jnp.zeros(2), co.grad_vac(KEY, 2, decay=0.0)
    same = jnp.array([[1.0, 0.0], [2.0, 0.0]])
    _, state = rule.update(same, rule.init(params), params)
    update, _ = rule.update(jnp.eye(2), state, params)
    # The target's rounding (2**-24, and once more in its square) stands beside
    # 1 - 0.9999**2 = 2e-4 under the root: half of 2 * 2**-23 / 2e-4, by two.
    rtol = 2 * 2**-23 / (1 - 0.9999**2)
    np.testing.assert_allclose(update, 1 + 0.9999 / np.sqrt(1 - 0.9999**2), rtol=rtol)


def test_what_is_left_of_a_row_that_was_cancelled_has_no_direction():
    """Its cosines would be those of rounding, and stay in the targets."""
    rows = np.random.default_rng(1).normal(size=(3, 7)).astype(np.float32)
    rows[1] = -3.7 * rows[0]

    @jax.jit
    def target_of(key):
        rule, params = co.grad_vac(key, 3), jnp.zeros(7)
        return rule.update(jnp.asarray(rows), rule.init(params), params)[
            1
        ].rule_state.target

    for key in jax.random.split(KEY, 5):
        wanted = np.zeros((3, 3))
        grad_vac(key, target=wanted)(rows.tolist(), [1.0] * 3)
        np.testing.assert_allclose(target_of(key), wanted, rtol=0, atol=1e-7)


def test_the_absent_and_the_zero_keep_their_targets():
    params, rule = jnp.zeros(5), co.grad_vac(KEY, 10, decay=0.5)
    rows = jnp.asarray(LARGE, jnp.float32).at[3].set(0)
    weights = jnp.ones(10).at[7].set(0)
    _, first = rule.update(jnp.asarray(LARGE, jnp.float32), rule.init(params), params)
    _, state = rule.update(rows, first, params, weights=weights)
    before, after = first.rule_state.target, state.rule_state.target
    kept = np.asarray(before == after)
    assert kept[[3, 7]].all()
    assert kept[:, [3, 7]].all()
    others = np.delete(np.delete(kept, [3, 7], 0), [3, 7], 1)
    assert not others[~np.eye(8, dtype=bool)].any()


def test_a_target_that_never_moves_is_pcgrad():
    rule, params = co.grad_vac(KEY, 10, decay=1.0), jnp.zeros(5)
    rows, state = jnp.asarray(LARGE, jnp.float32), rule.init(params)
    plain = co.pcgrad(KEY)
    other = plain.init(params)
    for _ in range(3):
        update, state = rule.update(rows, state, params)
        wanted, other = plain.update(rows, other, params)
        size = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(update, wanted, rtol=0, atol=1e-5 * size)


def test_another_number_of_rows_is_an_error():
    rule, params = co.grad_vac(KEY, 3), jnp.zeros(1)
    with pytest.raises(ValueError, match="`num_rows` must be the number of rows"):
        rule.update(jnp.ones((2, 1)), rule.init(params), params)
