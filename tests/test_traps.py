"""Silent failures of compositions in today's optax, each beside what happens here."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.experimental import aggregating

import consensus_optax as co
from tests._bounds import assert_sums, of_sum

pytestmark = pytest.mark.standard_promotion  # optax mixes its counts with floats

PARAMS = {"w": jnp.ones((3, 2))}
ROWS = {"w": jnp.arange(48.0).reshape(8, 3, 2) + 1}
MEAN = {"w": ROWS["w"].mean(0)}


@pytest.fixture(autouse=True)
def _as_users_have_it():
    """With jax's own settings, under which the failures are silent."""
    with jax.numpy_rank_promotion("allow"):
        yield


def first_update(tx, rows=ROWS, params=PARAMS, **extra):
    return tx.update(rows, tx.init(params), params, **extra)[0]


def multi_steps(optimizer):
    return optax.MultiSteps(optimizer, 2).gradient_transformation()


def theirs():
    return aggregating.average_per_element_updates(0)


def test_a_forgotten_reducer():
    silent = first_update(optax.adam(0.1))
    assert optax.apply_updates(PARAMS, silent)["w"].shape == (8, 3, 2)
    for ours in (
        co.skip_if_empty(optax.adam(0.1)),
        co.ema_agreement(),
        co.temporal_and_mask(),
        co.median_of_three_steps(),
    ):
        with pytest.raises(ValueError, match=r"`\['w'\]` is \(8, 3, 2\).*reducer miss"):
            first_update(ours)


def test_already_averaged_gradients():
    assert first_update(theirs(), MEAN)["w"].shape == (2,)  # a parameter axis is gone
    with pytest.raises(ValueError, match="already averaged"):
        first_update(co.mean(), MEAN)


def test_an_averaged_square_kernel():
    params = {"w": jnp.ones((4, 4))}
    private = optax.contrib.differentially_private_aggregate(1.0, 0.0, 0)
    assert first_update(private, params, params)["w"].shape == (4,)
    with pytest.raises(ValueError, match="already averaged"):
        first_update(co.mean(), params, params)


def test_extra_arguments():
    with pytest.raises(TypeError, match="value"):
        first_update(optax.chain(theirs(), optax.adam(0.1)), value=1.0)
    updates = first_update(optax.chain(co.mean(), optax.adam(0.1)), value=1.0)
    assert updates["w"].shape == (3, 2)


def test_process_with_bfloat16_rows_and_float32_parameters():
    low = {"w": ROWS["w"].astype(jnp.bfloat16)}
    around = lambda reducer: aggregating.process(
        optax.identity(), reducer, optax.adam(0.1)
    )
    with pytest.raises(TypeError, match="bfloat16"):
        first_update(around(theirs()), low)
    updates = first_update(around(co.mean()), low)
    assert (updates["w"] < 0).all()
    assert updates["w"].dtype == jnp.float32


def test_wrappers_go_after_the_reducer():
    """Around a reducer, zeros have the wrong shape or rows are taken for updates."""
    if_finite = lambda tx: optax.apply_if_finite(tx, 3)
    for wrap in (multi_steps, if_finite):
        with pytest.raises(TypeError, match="branches must have equal"):
            first_update(wrap(optax.chain(theirs(), optax.sgd(1.0))))
    with pytest.raises(ValueError, match="no example axis"):
        first_update(multi_steps(optax.chain(co.mean(), optax.sgd(1.0))))
    updates = first_update(optax.chain(co.mean(), if_finite(optax.sgd(1.0))))
    np.testing.assert_allclose(updates["w"], -MEAN["w"], rtol=1e-6)  # a mean of eight
    tx = optax.chain(co.mean(), multi_steps(optax.sgd(1.0)))
    waited, state = tx.update(ROWS, tx.init(PARAMS), PARAMS)
    moved, _ = tx.update(ROWS, state, PARAMS)
    assert not waited["w"].any()
    np.testing.assert_allclose(moved["w"], -MEAN["w"], rtol=1e-6)  # as above


def test_masked_leaves_the_other_leaves_their_rows():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    rows = {"a": jnp.ones((4, 2)), "b": jnp.ones((4, 2))}
    only_a = optax.masked(co.mean(), {"a": True, "b": False})
    silent = first_update(only_a, rows, params)
    assert (silent["a"].shape, silent["b"].shape) == ((2,), (4, 2))
    with pytest.raises(ValueError, match=r"`\['b'\]` is \(4, 2\).*reducer missing"):
        first_update(
            optax.chain(only_a, co.skip_if_empty(optax.sgd(1.0))), rows, params
        )
    frozen = optax.chain(co.mean(), optax.set_to_zero())
    labels = {"a": "train", "b": "freeze"}
    right = optax.partition({"train": co.mean(), "freeze": frozen}, labels)
    updates = first_update(right, rows, params)
    assert updates["a"].tolist() == [1, 1]
    assert updates["b"].tolist() == [0, 0]


def test_counts_are_static():
    """What fixes a shape cannot be injected: the error says where to list it."""
    injected = optax.inject_hyperparams(co.subspace_weighting)
    with pytest.raises(ValueError, match="'num_rows' in `static_args`"):
        jax.jit(lambda: first_update(injected(momentum=0.5, num_rows=8)))()
    static = optax.inject_hyperparams(
        co.subspace_weighting, static_args=("num_rows", "length")
    )
    updates = first_update(static(momentum=0.5, num_rows=8))
    assert updates["w"].any()


def test_clipping_before_the_reducer():
    """Theirs clips the stack as one vector, so one long row shrinks all others."""
    rows = {"w": jnp.array([[300.0, 400.0], [0.3, 0.4]])}
    params = {"w": jnp.zeros(2)}
    together = first_update(optax.clip_by_global_norm(1.0), rows, params)["w"]
    each = first_update(co.clip_examples(1.0), rows, params)["w"]
    assert jnp.linalg.norm(together[1]) < 1e-3
    np.testing.assert_allclose(
        each, [[0.6, 0.8], [0.3, 0.4]], rtol=1e-6
    )  # one division


def test_one_nan_in_one_of_four_rows():
    bad = {"w": ROWS["w"][:4].at[2, 0, 1].set(jnp.nan)}
    good = {"w": ROWS["w"][:4]}
    adam = lambda: optax.adam(0.1, b2=0.9)
    for reducer, survives in ((theirs(), False), (co.mean(), True)):
        tx = optax.chain(reducer, adam())
        _, state = tx.update(bad, tx.init(PARAMS), PARAMS)
        updates, _ = tx.update(good, state, PARAMS)  # the next step, with clean rows
        assert bool(jnp.isfinite(updates["w"]).all()) is survives
    _, state = co.mean().update(bad, co.mean().init(PARAMS), PARAMS)
    assert (int(state.num_present), int(state.num_nonfinite)) == (3, 1)


def test_a_weight_of_zero_does_not_read_its_row():
    rows = jnp.array([[1.0], [jnp.nan], [3.0]])
    weights = jnp.array([1.0, 0.0, 1.0])
    assert jnp.isnan(weights @ rows).all()
    assert first_update(co.mean(), rows, jnp.zeros(1), weights=weights).tolist() == [2]


def test_a_broken_row_is_not_selected():
    """argmin picks nan and a nan distance passes a filter; rules never see one."""
    assert jnp.argmin(jnp.array([1.0, jnp.nan, 0.5])) == 1
    rows = jnp.array([[1.0, 0.0], [jnp.nan, 0.0], [1.0, 0.2]])
    reducer, params = co.cosine_filter(0.97), jnp.zeros(2)
    update, state = reducer.update(rows, reducer.init(params), params)
    assert update.tolist() == [1, pytest.approx(0.1)]
    assert state.rule_state.accepted == 1


@pytest.mark.slow
def test_an_empty_step_of_adam():
    """Adam moves on by momentum, AdamW decays; `skip_if_empty` stands still."""
    agree, disagree = jnp.ones((2, 1)), jnp.array([[1.0], [-1.0]])
    for optimizer in (optax.adam(0.1), optax.adamw(0.1, weight_decay=0.1)):
        for wrap in (lambda tx: tx, co.skip_if_empty):
            tx = optax.chain(co.sign_consensus(), wrap(optimizer))
            params = jnp.ones(1)
            state = tx.init(params)
            for _ in range(5):
                _, state = tx.update(agree, state, params)
            updates, after = tx.update(disagree, state, params)
            if wrap is co.skip_if_empty:
                assert updates.tolist() == [0]
                assert after[1].inner == state[1].inner
                assert after[1].skipped == 1
            else:
                assert updates[0] < -0.08


def test_a_sum_of_many_bfloat16_rows():
    rows = jnp.full((4096, 1), 0.01, jnp.bfloat16)
    carried, _ = jax.lax.scan(lambda c, g: (c + g, None), jnp.bfloat16(0), rows[:, 0])
    assert carried == 4  # true: 41
    update = first_update(co.mean(), rows, jnp.zeros(1))
    exact = float(rows[0, 0])
    assert_sums(update, [exact], [exact], 4096, roundings=1)  # and one division


class Seen(NamedTuple):
    """State of a rule that looks at its products."""

    products: Any


@pytest.mark.slow
def test_distances_of_nearly_equal_rows():
    random = np.random.default_rng(0)
    rows = 10 + 1e-3 * random.normal(size=(3, 20000)).astype(np.float32)
    exact = ((rows[0].astype(float) - rows[1].astype(float)) ** 2).sum()
    seen = {}
    for reads in ("gramian", "centered"):
        weighting = co.Weighting(
            lambda products, roster, state: (roster.shares, Seen(products)),
            lambda params, dtype: Seen(jnp.zeros((3, 3), dtype)),
            reads,
        )
        reducer, params = co.reducer(weighting), jnp.zeros(20000)
        _, state = reducer.update(jnp.asarray(rows), reducer.init(params), params)
        g = np.asarray(state.rule_state.products)
        seen[reads] = g[0, 0] + g[1, 1] - 2 * g[0, 1]
    # Differences of sums of 20000 terms, near 2e6 in all and near 0.02.
    size = (rows[0].astype(float) ** 2).sum()
    assert of_sum(20000) * size > 100 * exact
    assert abs(seen["gramian"] - exact) > 10 * exact
    # rows less a number near them are exact, and each product at most of that size
    assert_sums(seen["centered"], exact, 2 * exact, 20000)


def test_the_gramian_of_bfloat16_rows():
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4096)), jnp.bfloat16)
    exact = np.asarray(rows, float) @ np.asarray(rows, float).T
    rounded = np.asarray(rows @ rows.T, float)
    ours = np.asarray(co.diagnostics.gramian(rows), float)
    # bfloat16 rounds what comes out, at the least; ours rounds 4096 float32 terms
    magnitudes = np.abs(np.asarray(rows, float)) @ np.abs(np.asarray(rows, float)).T
    assert of_sum(4096) < 1e-4
    assert (np.abs(rounded - exact) > 1e-4 * magnitudes).any()
    assert_sums(ours, exact, magnitudes, 4096)
