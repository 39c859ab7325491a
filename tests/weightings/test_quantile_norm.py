"""A norm that adapts: the published update, its privacy, and where it settles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co

KEY = jax.random.key(1)


def rule_of(noise_multiplier=1.0, **options):
    given = {"expected_rows": 64, "learning_rate": 0.5} | options
    norm = co.quantile_norm(10.0, **given)
    return co.private_sum(
        norm, divisor=64.0, noise_multiplier=noise_multiplier, key=KEY
    )


def norms_of_steps(rule, rows, num_steps, weights=None):
    params = jnp.zeros(rows.shape[1])

    def step(state, _):
        update, state = rule.update(rows, state, params, weights=weights)
        return state, (update, state.rule_state.max_norm)

    run = jax.jit(lambda: jax.lax.scan(step, rule.init(params), length=num_steps)[1])
    return map(np.asarray, run())


@pytest.mark.parametrize("quantile", [0.25, 0.5, 0.9])
def test_it_settles_at_the_quantile_of_the_norms(quantile):
    lengths = np.linspace(0.5, 1.5, 64)
    rows = jnp.asarray(lengths[:, None] * np.array([[0.6, 0.8, 0.0]]), jnp.float32)
    _, norms = norms_of_steps(rule_of(quantile=quantile), rows, 200)
    share = (lengths[:, None] <= norms[None, 100:]).mean()
    # of the noisy counts, 3.2 of 64, a tenth is left after averaging over steps
    assert share == pytest.approx(quantile, abs=0.03)


def test_one_step_is_the_published_update():
    rows = jnp.concatenate([jnp.full((3, 1), 5.0), jnp.full((5, 1), 20.0)])
    rule = rule_of(quantile=0.5, count_stddev=1e-3, noise_multiplier=1e-4)
    _, norms = norms_of_steps(rule, rows, 1)
    share = (3 * 0.5 - 5 * 0.5) / 64 + 0.5
    # the noise of the count is 1e-3 of one row of 64
    assert norms[0] == pytest.approx(10 * np.exp(-0.5 * (share - 0.5)), rel=1e-4)


def test_count_and_sum_share_the_noise_multiplier():
    """Two Gaussian mechanisms together are one: the squares of 1 / z add."""
    norm = co.quantile_norm(1.0, expected_rows=64)
    left = norm.left_for_the_sum(1.5)
    assert left**-2 + (2 * norm.count_stddev) ** -2 == pytest.approx(1.5**-2)
    updates, norms = norms_of_steps(rule_of(1.5), jnp.zeros((2, 4000)), 3)
    before = np.array([10.0, *norms[:2]])
    wanted = left * before / 64
    # of 4000 squares; within 5 deviations, exceeded with probability 6e-7 each
    np.testing.assert_allclose(updates.std(1), wanted, rtol=5 / np.sqrt(8000))


def test_a_row_that_is_not_there_or_not_finite_does_not_count():
    rows = jnp.full((6, 2), 100.0)
    weights = jnp.array([1, 1, 1, 1, 1, 0.0])
    broken = rows.at[4].set(jnp.nan).at[5].set(jnp.inf)
    _, wanted = norms_of_steps(rule_of(), rows[:4], 1)
    _, got = norms_of_steps(rule_of(), broken, 1, weights)
    assert got == wanted


def test_noise_that_the_count_uses_up_is_an_error():
    with pytest.raises(ValueError, match="`count_stddev` must be above half"):
        rule_of(1.0, count_stddev=0.5)
    with pytest.raises(ValueError, match="`quantile` must be in"):
        co.quantile_norm(1.0, expected_rows=1, quantile=1.5)
