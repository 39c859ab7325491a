"""The loop: a scan is the steps, mean rows are the plain gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from consensus_optax import training

BATCH = jnp.array([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0], [9.0, 9.0]])
WEIGHTS = jnp.array([1.0, 1.0, 1.0, 0.0])


def loss(params, batch):
    return ((batch - params["w"]) ** 2).mean()


def mean(params, batch, weights):
    losses = ((batch - params["w"]) ** 2).mean(1)
    return training.weighted_mean(losses, weights)


def start(optimizer):
    return training.start({"w": jnp.zeros((1, 2))}, optimizer)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_mean_rows_are_the_plain_step(weights):
    plain, rows = optax.sgd(0.1), optax.chain(co.mean(), optax.sgd(0.1))
    one, one_metrics = training.mean_step(mean, plain)(start(plain), BATCH, weights)
    other, other_metrics = training.row_step(loss, rows)(start(rows), BATCH, weights)
    np.testing.assert_allclose(one.params["w"], other.params["w"], rtol=1e-6)
    np.testing.assert_allclose(one_metrics["loss"], other_metrics["loss"], rtol=1e-6)


def test_weight_zero_is_as_if_absent():
    optimizer = optax.chain(co.sign_consensus(), optax.sgd(0.1))
    step = training.row_step(loss, optimizer, watch=["consensus_ratio"])
    padded = step(start(optimizer), BATCH, WEIGHTS)
    absent = step(start(optimizer), BATCH[:3], None)
    np.testing.assert_allclose(padded[0].params["w"], absent[0].params["w"], rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), padded[1], absent[1]
    )


def test_scan_is_the_steps():
    optimizer = optax.chain(co.mean(), optax.sgd(0.1))
    step = training.row_step(loss, optimizer)
    batch_at = lambda number: (BATCH * (1 + number).astype(jnp.float32), None)
    scanned, metrics = training.train(step, start(optimizer), batch_at, 3)
    fit = start(optimizer)
    for number in range(3):
        fit, last = step(fit, *batch_at(jnp.asarray(number)))
    np.testing.assert_allclose(scanned.params["w"], fit.params["w"], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"][-1], last["loss"], rtol=1e-6)
    assert int(scanned.step) == 3


@pytest.mark.parametrize("how", [{"group_size": 2}, {"num_rows": 2}], ids=str)
def test_groups_make_fewer_rows(how):
    optimizer = optax.chain(co.mean(), optax.sgd(0.1))
    step = training.row_step(loss, optimizer, **how)
    fit, _ = step(start(optimizer), BATCH, None)
    assert int(optax.tree.get(fit.opt_state, "num_present")) == 2


def test_watched_fields():
    state = co.per_leaf(co.cosine_filter()).init({"a": jnp.zeros(2), "b": jnp.zeros(3)})
    assert training.watched(state, "accepted").shape == ()
    assert training.watched(state, "consensus_ready") == 0
    assert training.watched(state, "absent") is None
    nested = co.among(co.cosine_filter(), co.sign_consensus()).init(jnp.zeros(2))
    assert training.watched(nested, "consensus_ratio").shape == ()


def test_a_mean_is_of_an_array():
    with pytest.raises(ValueError, match="`values` must be an array"):
        training.weighted_mean({"a": jnp.ones(2)}, jnp.ones(2))
    with pytest.raises(ValueError, match="`weights` must be an array"):
        training.weighted_mean(jnp.ones(2), {"a": jnp.ones(2)})
