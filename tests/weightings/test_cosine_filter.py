"""GAF against its authors' loop, and what that loop does not say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from tests._laws import close
from tests._reference import gaf, norm
from tests._stacks import first_update

P = 24
RANDOM = np.random.default_rng(11)
# Draws of eight rows around a common one, from hardly to mostly agreeing.
DRAWS = np.float32(
    RANDOM.normal(size=(20, 1, P)) * np.linspace(0, 1, 20)[:, None, None]
    + RANDOM.normal(size=(20, 8, P))
).astype(float)


@pytest.mark.parametrize("average", ["halving", "mean"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_its_authors_loop_for_two_to_eight_rows(dtype, average):
    with jax.enable_x64(dtype == "float64"):
        rows = jnp.asarray(DRAWS, dtype)

        @jax.jit
        def all_draws(threshold, weights):
            rule = co.cosine_filter(threshold, average)
            params = jnp.zeros(P, dtype)
            one = lambda g: rule.update(g, rule.init(params), params, weights=weights)
            return jax.vmap(one)(rows)[0]

        some_differ = False
        for count in range(2, 9):
            weights = (np.arange(8) < count).astype(dtype)
            for threshold in (0.5, 0.97):
                reference = gaf(threshold, average)
                wanted = np.array(
                    [reference(g[:count], [1.0] * count) for g in DRAWS.tolist()]
                )
                got = np.asarray(all_draws(threshold, jnp.asarray(weights)))
                rtol = 1e-6 if dtype == "float32" else 1e-12
                close(got, wanted, rtol, [f"{count} rows, {i}" for i in range(20)])
                some_differ |= (wanted[:, 0] == 0).any() and (wanted[:, 0] != 0).any()
        assert some_differ  # some draws are filtered out and some are not


def test_halving_weighs_the_last_row_most():
    rows = np.eye(4)
    result, state = first_update(co.cosine_filter(2.0), np.float32(rows))
    assert result.tolist() == [0.125, 0.125, 0.25, 0.5]
    assert state.rule_state.accepted == 3
    result, _ = first_update(co.cosine_filter(2.0, average="mean"), np.float32(rows))
    np.testing.assert_allclose(result, 4 * [0.25], rtol=1e-6)  # a division by 3


def test_the_first_row_decides():
    """An outlier in first place rejects everybody, in another place only itself."""
    rows = np.float32([[-1, 0], [1, 0.1], [1, -0.1], [1, 0.2]])
    result, state = first_update(co.cosine_filter(), rows)
    assert result.tolist() == [0, 0]
    assert not state.consensus_ready
    result, state = first_update(co.cosine_filter(), rows[[1, 0, 2, 3]])
    assert result[0] == 1
    assert (state.rule_state.accepted, state.consensus_ready) == (2, True)


def test_what_is_logged():
    rows = np.float32([[1, 0], [0, 1], [1, 0], [-1, 0]])
    _, state = first_update(co.cosine_filter(0.5), rows)
    accepted, mean, least = state.rule_state[:3]
    assert (accepted, least) == (1, -1)
    assert mean == pytest.approx(0, abs=1e-7)  # of 0, 1 and -1
    _, state = first_update(co.cosine_filter(0.5), rows[:1])
    assert state.rule_state[:3] == (0, 0, 0)


def test_rows_without_a_direction_are_rejected():
    """The authors' comparison lets nan pass; a zero row has a nan cosine."""
    rows = np.float32([[1, 0], [0, 0], [1, 0]])
    result, state = first_update(co.cosine_filter(), rows)
    assert result.tolist() == [1, 0]
    assert state.rule_state.accepted == 1


def test_leaves_may_decide_for_themselves():
    rows = {"a": jnp.array([[1.0, 0], [1, 0]]), "b": jnp.array([[5.0], [-5.0]])}
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    whole, apart = co.cosine_filter(), co.per_leaf(co.cosine_filter())
    for rule, wanted, ready in ((whole, [0, 0], False), (apart, [1, 0], True)):
        result, state = jax.jit(rule.update)(rows, rule.init(params), params)
        assert result["a"].tolist() == wanted
        assert result["b"].tolist() == [0]
        assert state.consensus_ready == ready
    assert state.rule_state.accepted.tolist() == [1, 0]


def test_a_soft_threshold():
    """The gate is a sigmoid; a cold one is the hard threshold."""
    rows = np.float32([[1, 0], [0, 1]])  # a distance of 1
    result, state = first_update(co.cosine_filter(0.8, temperature=0.1), rows)
    gate = 1 / (1 + np.exp(0.2 / 0.1))
    np.testing.assert_allclose(result, [1 - gate / 2, gate / 2], rtol=1e-6)  # sigmoid
    np.testing.assert_allclose(state.rule_state.accepted, gate, rtol=1e-6)  # as above
    cold = first_update(co.cosine_filter(temperature=1e-6), DRAWS[9])[0]
    np.testing.assert_array_equal(cold, first_update(co.cosine_filter(), DRAWS[9])[0])


def test_thresholds_follow_schedules():
    rows, params = np.float32([[1, 0], [0, 1]]), jnp.zeros(2)
    rule = co.cosine_filter(
        lambda step: jnp.where(step < 2, 0.5, 2.0),
        temperature=optax.constant_schedule(1e-6),
    )
    state, seen = rule.init(params), []
    for _ in range(3):
        result, state = jax.jit(rule.update)(rows, state, params)
        seen.append(result.tolist())
    assert seen == [[0, 0], [0, 0], [0.5, 0.5]]


def test_a_row_apart_by_exactly_the_threshold_is_accepted():
    rows = np.float32([[1, 0], [0, 1]])
    assert first_update(co.cosine_filter(1.0), rows)[1].rule_state.accepted == 1
    assert norm(first_update(co.cosine_filter(0.999), rows)[0].tolist()) == 0


PARALLEL = {
    "cosine_filter": lambda: co.cosine_filter(0.0),
    "neighbor_filter": lambda: co.neighbor_filter(0.0),
    "select_toward": lambda: co.select_toward(min_cosine=1.0),
}


@pytest.mark.parametrize("name", PARALLEL)
def test_parallel_rows_pass_the_strictest_threshold_however_they_round(name):
    rule, params = PARALLEL[name](), jnp.zeros(7)

    def accepted(row):
        rows = jnp.stack([row, row, 2 * row])
        return rule.update(rows, rule.init(params), params, target=row)[1].num_accepted

    rows = np.random.default_rng(0).normal(size=(50, 7))
    found = jax.jit(jax.vmap(accepted))(jnp.asarray(rows, jnp.float32))
    assert (np.asarray(found) == 3).all()
