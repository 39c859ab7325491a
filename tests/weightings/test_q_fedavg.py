"""q-FedAvg: the authors' formula in NumPy, and that losses come to it in rounds."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from consensus_optax import training
from tests._pinned import LARGE, SMALL, first_update

VALUES = np.array([0.5, 3.0, 0.0, 1.0, 2.5, 4.0, 0.1, 1.5, 2.0, 0.7])


def reference(rows, values, weights, q, slope):
    values = np.maximum(values, 1e-10)
    top = sum(
        w * slope * f**q * row for w, f, row in zip(weights, values, rows, strict=True)
    )
    below = sum(
        w * (q * f ** (q - 1) * np.sum((slope * row) ** 2) + slope * f**q)
        for w, f, row in zip(weights, values, rows, strict=True)
    )
    return top / below


@pytest.mark.parametrize("rows", [SMALL, LARGE])
@pytest.mark.parametrize("q", [0.0, 1.0, 2.5])
def test_equals_the_formula(rows, q):
    count = len(rows)
    weights, values = 0.5 + np.arange(count) % 3, VALUES[:count]
    rule = co.q_fedavg(q, 0.3)
    found = first_update(rule, rows, weights, values=jnp.asarray(values, jnp.float32))
    wanted = reference(rows, values, weights, q, 0.3)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_pinned():
    values = jnp.array([2.0, 1.0])
    found = first_update(co.q_fedavg(1.0, 1.0), SMALL, values=values)
    # (2 * [-4, 1, 2] + [6, 1, .5]) / (21 + 2 + 37.25 + 1)
    np.testing.assert_allclose(found, np.array([-2, 3, 4.5]) / 61.25, rtol=1e-6)


def test_broken_and_huge_losses():
    rows = np.array([[1.0], [2.0], [4.0]])
    values = jnp.array([jnp.nan, -1.0, 3.0])
    alone = first_update(co.q_fedavg(1.0, 1.0), rows, values=values)
    np.testing.assert_allclose(alone, 3 * 4 / (16 + 3), rtol=1e-6)
    large = jnp.array([1e20, 1e20, 1e20])  # powers would overflow
    found = first_update(co.q_fedavg(5.0, 1.0), rows, values=large)
    np.testing.assert_allclose(found, 7 / 3, rtol=1e-6)


def test_rounds_hand_the_losses_over():
    loss = lambda w, target: 0.5 * (w - target) ** 2
    server = optax.chain(co.q_fedavg(1.0, 2.0), optax.sgd(1.0))
    step = training.federated_round(loss, server, optax.sgd(0.5))
    batches = jnp.array([[2.0], [-4.0]])
    fit, _ = step(training.start(jnp.zeros(()), server), batches, None)
    losses, rows = np.array([2.0, 8.0]), np.array([-1.0, 2.0])[:, None]
    wanted = -reference(rows, losses, np.ones(2), 1.0, 2.0)
    np.testing.assert_allclose(fit.params, wanted[0], rtol=1e-6)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`q` must be in \[0, inf\]; got -1"):
        co.q_fedavg(-1.0, 1.0)
    with pytest.raises(ValueError, match=r"`lipschitz` must be in \(0, inf\]; got 0"):
        co.q_fedavg(1.0, 0.0)
