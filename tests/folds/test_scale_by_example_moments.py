"""Adam with second moments of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co

STEPS, B, P = 4, 5, 12
random = np.random.default_rng(11)
ROWS = jnp.asarray(random.normal(0.3, 1, (STEPS, B, P)), jnp.float32)


def steps(transformation, updates, compiled=True):
    params = jnp.zeros(P)
    state, found = transformation.init(params), []
    update = jax.jit(transformation.update) if compiled else transformation.update
    for now in updates:
        out, state = update(now, state, params)
        found.append(out)
    return np.stack(found), state


def loops(kappa, b1=0.9, b2=0.999, eps=1e-8):
    """The formula, coordinate by coordinate, in float64."""
    out = np.zeros((STEPS, P))
    for p in range(P):
        mu = nu = 0.0
        for t in range(STEPS):
            column = [float(x) for x in ROWS[t, :, p]]
            mean = sum(column) / B
            square = sum(x * x for x in column) / B
            moment = mean**2 + kappa * (square - mean**2)
            mu = b1 * mu + (1 - b1) * mean
            nu = b2 * nu + (1 - b2) * moment
            corrected = nu / (1 - b2 ** (t + 1))
            out[t, p] = mu / (1 - b1 ** (t + 1)) / (corrected**0.5 + eps)
    return out


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
def test_equals_the_loops(kappa):
    found, state = steps(co.scale_by_example_moments(variance=kappa), ROWS)
    # 1 - b2 ** t has lost 1e3 of 1 / eps in float32
    np.testing.assert_allclose(found, loops(kappa), rtol=1e-4, atol=1e-6)
    assert int(optax.tree.get(state, "count")) == STEPS


@pytest.mark.standard_promotion  # optax's own Adam
@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
def test_of_one_row_it_is_adam(kappa):
    """To the bit where operations run one by one: a compiler fuses some of them."""
    rule = co.scale_by_example_moments(variance=kappa, eps_root=1e-9)
    adam, update = optax.scale_by_adam(eps_root=1e-9), ROWS[:, 0]
    found, state = steps(rule, update[:, None], compiled=False)
    wanted, moments = steps(adam, update, compiled=False)
    if kappa == 0.3:  # of a square and 0.7 of it
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    else:
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(optax.tree.get(state, "nu"), moments.nu)
    found, _ = steps(rule, update[:, None])
    np.testing.assert_allclose(found, steps(adam, update)[0], rtol=0, atol=2**-21)


@pytest.mark.standard_promotion
def test_without_the_variance_it_is_adam_of_the_mean():
    found, _ = steps(co.scale_by_example_moments(variance=0.0), ROWS)
    wanted, _ = steps(optax.scale_by_adam(), ROWS.mean(1))
    # the mean is of 5 numbers in another order
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_step_without_a_row_changes_no_moment():
    rule, params = co.scale_by_example_moments(), jnp.zeros(P)
    _, before = rule.update(ROWS[0], rule.init(params), params)
    broken = ROWS[1].at[:, 0].set(jnp.nan)
    update, after = rule.update(broken, before, params)
    assert not update.any()
    assert not after.consensus_ready
    kept = lambda state: (state.rule_state.count, state.rule_state.arrays)
    jax.tree.map(np.testing.assert_array_equal, kept(before), kept(after))


def test_a_square_that_overflows_costs_its_coordinate_one_step():
    rule, params = co.scale_by_example_moments(), jnp.zeros(P)
    update, state = rule.update(ROWS[0].at[0, 3].set(1e25), rule.init(params), params)
    assert update[3] == 0
    assert (np.asarray(update) != 0).sum() == P - 1
    again, _ = rule.update(ROWS[1], state, params)
    assert again[3] != 0
    assert np.isfinite(again).all()


@pytest.mark.parametrize("size", [1.0, 1e20])
def test_factors_of_other_sizes_multiply_to_the_same_squares(size):
    """(1e-20 a) (1e20 d): squares of the first are no float32 numbers."""
    a, d = ROWS[0, :, None, :4], ROWS[1, :, None, :3]
    rows = co.OuterProduct(a / size, d * size, row_shape=(4, 3))
    rule, params = co.scale_by_example_moments(), jnp.zeros((4, 3))
    found, _ = jax.jit(rule.update)(rows, rule.init(params), params)
    arrays = a[:, 0, :, None] * d[:, 0, None, :]
    wanted, _ = jax.jit(rule.update)(arrays, rule.init(params), params)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)  # sums of 5


@pytest.mark.parametrize("name", ["b1", "variance", "eps"])
def test_says_what_is_out_of_range(name):
    with pytest.raises(ValueError, match=f"`{name}` must be in"):
        co.scale_by_example_moments(**{name: -0.5})
