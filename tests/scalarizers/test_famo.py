import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from consensus_optax import scalarizers

pytestmark = pytest.mark.standard_promotion  # Adam's

RANDOM = np.random.default_rng(0)
BEFORE = np.float32(RANDOM.uniform(0.5, 3, (8, 3)))
AFTER = np.float32(BEFORE * RANDOM.uniform(0.5, 1.1, (8, 3)))


def softmax(logits):
    odds = [math.exp(x) for x in logits]
    return [x / sum(odds) for x in odds]


def loop(before, after, rate=0.025, decay=1e-3, ideal=0.0):
    """Value, gradient and new logits, step by step; Adam written out."""
    count = len(before[0])
    logits, first, second = [0.0] * count, [0.0] * count, [0.0] * count
    for t, (old, new) in enumerate(zip(before, after, strict=True), 1):
        z = softmax(logits)
        left = [x - ideal + 1e-8 for x in old]
        inverse = sum(s / x for s, x in zip(z, left, strict=True))
        value = sum(s * math.log(x) for s, x in zip(z, left, strict=True)) / inverse
        grad = [s / x / inverse for s, x in zip(z, left, strict=True)]
        fall = [
            math.log(x) - math.log(y - ideal + 1e-8)
            for x, y in zip(left, new, strict=True)
        ]
        for j in range(count):
            slope = decay * logits[j]
            for k in range(count):  # of sum_k z_k fall_k by logit j
                slope += fall[k] * z[k] * ((j == k) - z[j])
            first[j] = 0.9 * first[j] + 0.1 * slope
            second[j] = 0.999 * second[j] + 0.001 * slope**2
            size = math.sqrt(second[j] / (1 - 0.999**t)) + 1e-8
            logits[j] -= rate * first[j] / (1 - 0.9**t) / size
        yield value, grad, list(logits)


def followed(scalarizer, before, after):
    def step(state, given):
        old, new = given
        value, grad = jax.value_and_grad(scalarizer.scalar)(old, state)
        state = scalarizer.update(old, state, new)
        return state, (value, grad, state.logits, state.skipped)

    start = scalarizer.init(before.shape[1])
    run = jax.jit(lambda *given: jax.lax.scan(step, start, given)[1])
    return [np.asarray(x) for x in run(before, after)]


@pytest.mark.parametrize("ideal", [0.0, 0.25])
def test_equals_the_loop(ideal):
    scalarizer = scalarizers.famo(0.1, 0.01, None if ideal == 0 else [ideal] * 3)
    wanted = [*loop(BEFORE.tolist(), AFTER.tolist(), 0.1, 0.01, ideal)]
    got = followed(scalarizer, BEFORE, AFTER)
    for place, name in enumerate(["value", "gradient", "logits"]):
        expected = np.array([step[place] for step in wanted])
        # Adam divides by the root of a square that float32 rounds.
        np.testing.assert_allclose(got[place], expected, atol=2e-4, err_msg=name)
    assert np.ptp(wanted[-1][2]) > 0.1
    np.testing.assert_allclose(got[1].sum(1), 1, rtol=1e-5)  # convex


def test_losses_fall_at_one_rate():
    """Two quadratics of scales 1 and 1000: the plain sum sees the second alone."""
    scales = jnp.array([1.0, 1000.0])
    targets = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    losses = lambda x: scales * (0.1 + ((x[None] - targets) ** 2).sum(1))

    def last(scalarizer, rate):
        def step(carry, _):
            x, state = carry
            slope = jax.grad(lambda x: scalarizer.scalar(losses(x), state))(x)
            new = x - rate * slope
            return (new, scalarizer.update(losses(x), state, losses(new))), None

        start = jnp.array([-1.0, -1.0]), scalarizer.init(2)
        return jax.jit(lambda: jax.lax.scan(step, start, length=400)[0][0])()

    x = last(scalarizers.famo(0.001), 0.05)  # Adam, near the end, follows rounding
    np.testing.assert_allclose(x, [0.5, 0.5], atol=0.1)
    total = scalarizers.Scalarizer(
        lambda count: (), lambda given, _: given.sum(), lambda *_: ()
    )
    np.testing.assert_allclose(last(total, 1e-4), [0, 1], atol=0.05)


def test_a_bad_loss_leaves_the_weights_as_they_are():
    after = AFTER.copy()
    after[3, 1], after[5] = np.nan, np.inf
    _, _, logits, skipped = followed(scalarizers.famo(), BEFORE, after)
    np.testing.assert_array_equal(logits[3], logits[2])
    np.testing.assert_array_equal(logits[5], logits[4])
    np.testing.assert_array_equal(skipped, [0, 0, 0, 1, 1, 2, 2, 2])
    keep = np.delete(np.arange(8), [3, 5])
    without = followed(scalarizers.famo(), BEFORE[keep], AFTER[keep])[2]
    np.testing.assert_allclose(logits[-1], without[-1], atol=1e-6)


def test_a_loss_below_its_bound_has_a_finite_value_and_no_gradient():
    scalarizer = scalarizers.famo(ideal=[0.0, 1.0])
    value, grad = jax.value_and_grad(scalarizer.scalar)(
        jnp.array([1.0, 0.5]), scalarizer.init(2)
    )
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    assert grad[1] == 0
    at_the_bound = jax.grad(scalarizer.scalar)(jnp.array([0.0, 2]), scalarizer.init(2))
    assert at_the_bound[0] == 0


def test_what_update_needs():
    scalarizer = scalarizers.famo()
    with pytest.raises(ValueError, match="`new_losses` must be the losses of the same"):
        scalarizer.update(jnp.ones(2), scalarizer.init(2))
    with pytest.raises(ValueError, match=r"`learning_rate` must be in \[0"):
        scalarizers.famo(-1.0)
    assert optax.tree.get(scalarizer.init(2), "skipped") == 0
