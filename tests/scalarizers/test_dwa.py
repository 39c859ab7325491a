import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax import scalarizers

LOSSES = np.float32(np.random.default_rng(0).uniform(0.1, 3, (10, 3)))


def loop(losses, steps_per_epoch, temperature):
    """Weights at each step, in the order of the paper: epoch after epoch."""
    epochs = []
    for step in range(len(losses)):
        if step and step % steps_per_epoch == 0:
            past = losses[step - steps_per_epoch : step]
            epochs.append(
                [sum(column) / len(past) for column in zip(*past, strict=True)]
            )
        if len(epochs) < 2:
            yield [1.0] * len(losses[0])
            continue
        rates = [new / old for new, old in zip(epochs[-1], epochs[-2], strict=True)]
        odds = [math.exp(rate / temperature) for rate in rates]
        yield [len(odds) * x / sum(odds) for x in odds]


def followed(scalarizer, losses):
    """Value and gradient by the losses at every step, and the last state."""

    def step(state, given):
        value, weights = jax.value_and_grad(scalarizer.scalar)(given, state)
        return scalarizer.update(given, state), (value, weights)

    start = scalarizer.init(losses.shape[1])
    state, outcomes = jax.jit(lambda x: jax.lax.scan(step, start, x))(losses)
    return *(np.asarray(x) for x in outcomes), state


@pytest.mark.parametrize("steps_per_epoch", [1, 3])
def test_equals_the_loop(steps_per_epoch):
    values, weights, _ = followed(scalarizers.dwa(steps_per_epoch, 1.5), LOSSES)
    wanted = np.array([*loop(LOSSES.tolist(), steps_per_epoch, 1.5)])
    np.testing.assert_allclose(weights, wanted, rtol=1e-5)
    np.testing.assert_allclose(values, (wanted * LOSSES).sum(1), rtol=1e-5)
    assert np.ptp(wanted[-1]) > 0.1


def test_the_scale_of_a_loss_is_irrelevant_to_the_weights():
    plain = followed(scalarizers.dwa(2), LOSSES)[1]
    scaled = followed(scalarizers.dwa(2), LOSSES * np.float32([1e-6, 1, 1e6]))[1]
    np.testing.assert_allclose(scaled, plain, rtol=1e-4)
    np.testing.assert_allclose(plain.sum(1), 3, rtol=1e-5)


def test_a_bad_loss_is_left_out_of_its_mean():
    bad = LOSSES.copy()
    bad[1, 0], bad[4, 2] = np.nan, np.inf
    state = followed(scalarizers.dwa(5), bad)[2]
    np.testing.assert_allclose(
        state.older[0], LOSSES[[0, 2, 3, 4], 0].mean(), rtol=1e-6
    )
    np.testing.assert_allclose(state.older[2], LOSSES[:4, 2].mean(), rtol=1e-6)
    np.testing.assert_allclose(state.newer, LOSSES[5:].mean(0), rtol=1e-6)


def test_a_loss_without_a_rate_counts_as_one_that_stays():
    losses = jnp.array([[0.0, 1.0, -1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    weights = followed(scalarizers.dwa(1), losses)[1]
    np.testing.assert_allclose(weights[2], 1, rtol=1e-6)


def test_arguments_are_checked():
    for make, message in (
        (lambda: scalarizers.dwa(0), "`steps_per_epoch` must be at least 1"),
        (lambda: scalarizers.dwa(1, 0.0), r"`temperature` must be in \(0"),
        (lambda: scalarizers.dwa(1).init(0), "`num_losses` must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    scalarizer = scalarizers.dwa(1)
    with pytest.raises(ValueError, match=r"`state` must have one number a loss, \(3,"):
        scalarizer.update(jnp.ones(3), scalarizer.init(2))
