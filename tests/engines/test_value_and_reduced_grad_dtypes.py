"""What decides or sums is float32 at least, however the rows are computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests._stacks import matrix

SIZES = [None, 8]
HALF = np.finfo(np.float16)


def reduced(loss, reducer, size, params, batch, **given):
    step = co.value_and_reduced_grad(loss, reducer, microbatch_size=size)
    run = jax.jit(lambda params, batch: step(params, batch, state=start, **given))
    start = reducer.init(params)
    return run(params, batch)


def half_loss(params, x):
    """float32 parameters, computed with in float16: row i is 100 x_i."""
    return 100 * jnp.mean(x.astype(jnp.float16) @ params.astype(jnp.float16))


@pytest.mark.parametrize("size", SIZES)
def test_a_mean_of_float16_losses_does_not_overflow(size):
    x, params = jnp.full((1024, 1), 1.3), jnp.ones(1)
    value, update, state = reduced(half_loss, co.mean(), size, params, x)
    assert value.dtype == jnp.float16
    np.testing.assert_allclose(value, 130, rtol=HALF.eps)
    np.testing.assert_allclose(update, 130, rtol=HALF.eps)  # one rounding of each row
    assert state.consensus_ready


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", [co.normalized_mean, co.subspace_weighting])
def test_weights_are_not_rounded_to_what_the_model_computes_in(rule, size):
    """Rows of 1e-3 and less: a weight of one over the norm is no float16 number."""
    x, params = 1e-5 * (1 + jnp.arange(16.0).reshape(16, 1) % 4), jnp.ones(1)
    _, update, state = reduced(half_loss, rule(), size, params, x)
    np.testing.assert_allclose(update, 1, rtol=1e-5)  # float32 sums of 16 rows
    assert state.consensus_ready


@pytest.mark.parametrize("size", SIZES)
def test_a_large_sample_count_counts(size):
    x, params = jnp.ones((16, 1)).at[0].set(2), jnp.ones(1)
    weights = jnp.ones(16).at[0].set(1e5)
    value, update, state = reduced(
        half_loss, co.mean(), size, params, x, weights=weights
    )
    wanted = (2e5 + 15) / (1e5 + 15) * 100
    np.testing.assert_allclose(update, wanted, rtol=1e-6)
    np.testing.assert_allclose(value, wanted, rtol=HALF.eps)
    assert state.num_present == 16


@pytest.mark.slow
def test_float16_compute_is_the_same_in_microbatches():
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(1, 1, (16, 5)), jnp.float32)
    params = jnp.asarray(random.normal(size=(5,)), jnp.float32)
    for rule in (co.mean(), co.cosine_filter(1.5), co.krum(1), co.sign_consensus(0.6)):
        whole = reduced(half_loss, rule, None, params, x)
        parts = reduced(half_loss, rule, 5, params, x)
        for one, other in zip(whole[:2], parts[:2], strict=True):
            # sums of 16 float32 numbers in another order
            np.testing.assert_allclose(one, other, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("size", SIZES)
def test_what_overflows_on_the_way_out_is_not_ready(size):
    """The float32 sum of sound float16 rows may be no float16 number."""
    total = co.reducer(
        co.Fold(
            (co.Statistic(lambda g, w: w * g, jnp.add),), lambda merged, _: merged[0]
        )
    )
    params = {"w": jnp.zeros(2, jnp.float16), "b": jnp.zeros(3, jnp.float16)}
    loss = lambda p, x: jnp.vdot(p["w"], x[0, :2]) + p["b"].sum()
    x = jnp.full((16, 2), 6e4, jnp.float16)
    _, update, state = reduced(loss, total, size, params, x)
    assert not matrix(update).any()
    assert not state.consensus_ready
    assert state.num_nonfinite == 0
    _, update, state = reduced(loss, total, size, params, x / 100)
    assert state.consensus_ready
    np.testing.assert_allclose(update["w"], 16 * 600, rtol=HALF.eps)
