import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax.scalarizers import smooth_tchebycheff

RANDOM = np.random.default_rng(0)


def loop(losses, mu, preference, ideal):
    weighted = [p * (x - z) for x, p, z in zip(losses, preference, ideal, strict=True)]
    worst = max(weighted)
    return worst + mu * math.log(
        math.fsum(math.exp((y - worst) / mu) for y in weighted)
    )


def cases(count=60):
    """Losses, mu, preference and ideal of many sizes."""
    for i in range(count):
        size = 10.0 ** (i % 5 - 2)
        losses, preference, ideal = RANDOM.uniform(0, 1, (3, 4)) * [[size], [1], [size]]
        yield losses, 10.0 ** (i % 7 - 4), preference, ideal


def test_equals_the_loop_and_is_within_its_bounds():
    run = jax.jit(smooth_tchebycheff)
    for losses, mu, preference, ideal in cases():
        given = np.float32(losses), np.float32(mu), np.float32(preference)
        got = float(run(*given, np.float32(ideal)))
        plain = [np.float64(x) for x in (*given, np.float32(ideal))]
        wanted = loop(*(x.tolist() for x in plain))
        worst = (plain[2] * (plain[0] - plain[3])).max()
        slack = 4e-6 * (np.abs(plain[0]).max() + mu)  # a few float32 roundings
        assert abs(got - wanted) <= slack
        assert worst - slack <= got <= worst + plain[1] * math.log(4) + slack


def test_its_gradient_goes_from_the_worst_loss_to_all():
    losses = jnp.array([1.0, 3.0, 2.0])
    grad = jax.grad(smooth_tchebycheff)
    np.testing.assert_allclose(grad(losses, 1e-30), [0, 1 / 3, 0], atol=1e-6)
    np.testing.assert_allclose(grad(1e12 * losses, 1e-30), [0, 1 / 3, 0], atol=1e-6)
    np.testing.assert_allclose(grad(losses, 1e6), [1 / 9] * 3, atol=1e-5)


def test_narrow_losses_are_weighed_in_float32():
    assert smooth_tchebycheff(jnp.ones(3, jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": jnp.ones((2, 2))}, r"`losses` must be \(K,\).*\(2, 2\)"),
        ({"losses": jnp.ones(2, int)}, "`losses` must be floating; got int"),
        ({"losses": jnp.ones(2), "mu": 0.0}, r"`mu` must be in \(0"),
        ({"losses": jnp.ones(2), "preference": [1.0]}, "`preference` must have one nu"),
        (
            {"losses": jnp.ones(2), "ideal": [1.0]},
            "`ideal` must have one number a loss",
        ),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        smooth_tchebycheff(**arguments)
