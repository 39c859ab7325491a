"""What is remembered of parameters that are numbers is not logged."""

import jax
import jax.numpy as jnp
import optax
import pytest

import consensus_optax as co
from tests.diagnostics.test_metrics import EVERY_RULE, PARAMS

pytestmark = pytest.mark.standard_promotion  # optax mixes its counts with floats


def metrics_before_a_step(tx, params):
    return set(co.metrics(tx.init(params)))


@pytest.mark.parametrize("row", EVERY_RULE)
def test_scalar_parameters_are_no_metrics(row):
    """The names do not depend on shapes, nor on whether parameters are in a tree."""
    rule, number = row.make(4), jnp.float32(2)
    wanted = metrics_before_a_step(rule, PARAMS)
    assert (
        metrics_before_a_step(rule, {"scale": number, "ids": jnp.arange(1)}) == wanted
    )
    assert metrics_before_a_step(rule, number) == wanted


def test_nor_are_they_of_what_stands_before_and_after():
    tx = optax.chain(
        co.row_momentum(0.5, 4),
        co.error_feedback(co.compressors.top_k(0.5), 4),
        co.centered_clipping(1.0),
        co.ema_agreement(),
        co.temporal_and_mask(),
        co.median_of_three_steps(),
        co.proximal(0.1),
        co.magma(optax.adam(1e-3), jax.random.key(0)),
    )
    wanted = metrics_before_a_step(tx, PARAMS)
    assert metrics_before_a_step(tx, jnp.float32(2)) == wanted
    assert wanted >= {"clipped_share", "suppressed", "kept"}
