"""GradDrop: pinned values, keys, and the expectation of its draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests import _pinned, _reference_agreement
from tests._pinned import LARGE, first_update

KEY = jax.random.key(11)


@pytest.mark.parametrize("leak", [0.0, 0.3, 1.0])
def test_equals_the_loop(leak):
    on_leaves = _reference_agreement.graddrop(leak, KEY)
    reference = lambda rows, weights: on_leaves([np.array(rows)], weights)[0]
    _pinned.check(co.graddrop(leak, KEY), reference)


def test_full_leak_is_the_sum():
    update = first_update(co.graddrop(1.0, KEY), LARGE)
    np.testing.assert_allclose(update, LARGE.sum(0), rtol=1e-5)


def test_leak_may_be_a_schedule():
    scheduled = co.graddrop(lambda step: jnp.where(step == 0, 0.3, jnp.nan), KEY)
    got, wanted = (first_update(r, LARGE) for r in (scheduled, co.graddrop(0.3, KEY)))
    np.testing.assert_array_equal(got, wanted)


def test_one_side_survives():
    positive = np.maximum(LARGE, 0).sum(0)
    negative = np.minimum(LARGE, 0).sum(0)
    update = first_update(co.graddrop(0.0, KEY), LARGE)
    kept = np.isclose(update, positive) | np.isclose(update, negative)
    assert kept.all()


def run(key, steps=1):
    rule, params = co.graddrop(0.0, key), jnp.zeros(64)
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(4, 64)), jnp.float32)
    state, updates = rule.init(params), []
    for _ in range(steps):
        update, state = rule.update(rows, state, params)
        updates.append(np.asarray(update))
    return updates


def test_draws_follow_from_key_and_step():
    first, second = run(KEY, steps=2)
    np.testing.assert_array_equal(first, run(KEY)[0])
    assert (first != second).any()
    assert (first != run(jax.random.key(12))[0]).any()


def test_legacy_keys_do_as_well():
    np.testing.assert_array_equal(
        run(jax.random.PRNGKey(11))[0], run(jax.random.key(11))[0]
    )


def test_equal_leaves_draw_apart():
    rule = co.graddrop(0.0, KEY)
    params = {"a": jnp.zeros(64), "b": jnp.zeros(64)}
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(4, 64)), jnp.float32)
    update, _ = rule.update({"a": rows, "b": rows}, rule.init(params), params)
    assert (update["a"] != update["b"]).any()


def test_positive_entries_win_as_often_as_they_should():
    rows = jnp.tile(jnp.array([[3.0], [-1.0]]), (1, 20_000))  # P = (1 + 2 / 4) / 2
    rule, params = co.graddrop(0.0, KEY), jnp.zeros(20_000)
    update, _ = rule.update(rows, rule.init(params), params)
    share = np.mean(np.asarray(update) == 3)
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 20_000)  # four deviations
    assert abs(np.mean(update) - 2) < 4 * 4 * np.sqrt(0.75 * 0.25 / 20_000)  # the sum
