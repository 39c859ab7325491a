"""AdaCons against its authors' lines, with the permutation that they meant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests._laws import close
from tests._reference import AdaCons
from tests._stacks import first_update

P, STEPS, MOST = 24, 20, 32
RANDOM = np.random.default_rng(12)
# Twenty steps of 32 rows around a drifting common one.
ROWS = np.float32(
    RANDOM.normal(size=(1, 1, P))
    + 0.3 * RANDOM.normal(size=(STEPS, 1, P))
    + RANDOM.normal(size=(STEPS, MOST, P))
).astype(float)


def reference(momentum, count, rescale=False):
    rule = AdaCons(momentum, rescale)
    steps = ROWS[:, :count].tolist()
    return np.array([rule(rows, [1.0] * count) for rows in steps])


def all_steps(momentum, num_rows, dtype, length="unit"):
    """A compiled function: rows of all steps and weights to the updates of all."""
    rule = co.subspace_weighting(momentum, num_rows, length)
    params = jnp.zeros(P, dtype)

    @jax.jit
    def run(steps, weights):
        def step(state, rows):
            return rule.update(rows, state, params, weights=weights)[::-1]

        return jax.lax.scan(step, rule.init(params), steps)[1]

    return run


@pytest.mark.parametrize("momentum", [0.0, 0.99])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_its_authors_code_for_two_to_thirty_two_rows(dtype, momentum):
    """Twenty steps; fewer rows than 32 are 32 of which some are not there."""
    rtol = 1e-6 if dtype == "float32" else 1e-12
    with jax.enable_x64(dtype == "float64"):
        run = all_steps(momentum, MOST, dtype)
        for count in range(2, MOST + 1):
            weights = jnp.asarray(np.arange(MOST) < count, dtype)
            got = np.asarray(run(jnp.asarray(ROWS, dtype), weights))
            names = [f"{count} rows, step {i}" for i in range(STEPS)]
            close(got, reference(momentum, count), rtol, names)


def test_equals_its_authors_code_without_padding():
    run = all_steps(0.9, 5, "float32", "mean_norm")
    got = run(jnp.float32(ROWS[:, :5]), jnp.ones(5))
    close(np.asarray(got), reference(0.9, 5, rescale=True), 1e-6, range(STEPS))


@pytest.mark.parametrize(("count", "share"), [(3, 0.31), (8, 0.98), (32, 1.0)])
def test_the_published_permutation_is_wrong(count, share):
    """Put back by the permutation itself, most draws give the wrong coefficients."""
    random, wrong, draws = np.random.default_rng(5), 0, 1000
    for _ in range(draws):
        coefficients = random.normal(size=count).tolist()
        published = AdaCons(0.99, back="published").averaged(coefficients)
        assert AdaCons(0.99).averaged(coefficients) == coefficients
        wrong += published != coefficients
    assert wrong / draws == pytest.approx(share, abs=0.04)  # 3 sigma, and 1/3 - 0.31


def test_a_momentum_of_the_ranks_not_of_the_rows():
    """Rows that change places keep the averages of their ranks."""
    rule, params = co.subspace_weighting(0.5, 2), jnp.zeros(2)
    long, short = np.float32([3, 0]), np.float32([0, 1])
    _, state = jax.jit(rule.update)(np.stack([long, short]), rule.init(params), params)
    np.testing.assert_allclose(
        state.rule_state.sorted_coefficients, [0.5, 1.5], rtol=1e-6
    )
    result, after = jax.jit(rule.update)(np.stack([short, long]), state, params)
    np.testing.assert_allclose(result, [0.75, 0.25], rtol=1e-6)  # two divisions
    np.testing.assert_allclose(
        after.rule_state.sorted_coefficients, [0.5, 1.5], rtol=1e-6
    )


def test_falls_back_where_coefficients_cancel():
    """Rows that sum to zero: the mean of directions, where the authors divide by 0."""
    rows = np.float32([[2, 0], [-1, 1], [-1, -1]])
    result, state = first_update(co.subspace_weighting(), rows)
    assert state.rule_state.fell_back
    expected, _ = first_update(co.normalized_mean(), rows)
    np.testing.assert_allclose(result, expected, rtol=1e-6)  # epsilon beside norms
    _, state = first_update(co.subspace_weighting(), np.abs(rows))
    assert not state.rule_state.fell_back


def test_momentum_must_know_the_number_of_rows():
    with pytest.raises(ValueError, match=r"`num_rows` must be the number of rows B"):
        co.subspace_weighting(0.9)
    rule = co.subspace_weighting(0.9, 4)
    with pytest.raises(ValueError, match="got 4, but the rows are 3"):
        first_update(rule, np.ones((3, 2), np.float32))


def test_ranks_of_absent_rows_keep_their_average():
    rule, params = co.subspace_weighting(0.5, 3), jnp.zeros(P)
    rows = jnp.float32(ROWS[0, :3])
    _, state = jax.jit(rule.update)(rows, rule.init(params), params)
    _, after = jax.jit(rule.update)(rows, state, params, weights=jnp.array([1.0, 0, 1]))
    assert after.rule_state.seen.all()
    assert (
        after.rule_state.sorted_coefficients[2]
        == state.rule_state.sorted_coefficients[2]
    )
    assert (
        after.rule_state.sorted_coefficients[:2]
        != state.rule_state.sorted_coefficients[:2]
    ).all()
