import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from consensus_optax.scalarizers import uncertainty


def test_equals_the_loop():
    random = np.random.default_rng(0)
    for _ in range(20):
        losses, logs = random.normal(size=(2, 5)).astype(np.float32)
        pairs = zip(losses.tolist(), logs.tolist(), strict=True)
        wanted = math.fsum(0.5 * math.exp(-s) * x + 0.5 * s for x, s in pairs)
        assert abs(float(uncertainty(losses, logs)) - wanted) < 1e-5


@pytest.mark.standard_promotion  # Adam's
def test_trained_with_an_optimizer_it_ends_at_the_logarithms_of_the_losses():
    losses, logs = jnp.array([0.1, 1.0, 30.0]), jnp.zeros(3)
    adam = optax.adam(0.05)

    def step(carry, _):
        logs, state = carry
        slope = jax.grad(uncertainty, argnums=1)(losses, logs)
        update, state = adam.update(slope, state)
        return (logs + update, state), None

    (logs, _), _ = jax.lax.scan(step, (logs, adam.init(logs)), length=1500)
    np.testing.assert_allclose(logs, np.log([0.1, 1, 30]), atol=1e-3)
    weights = jax.grad(uncertainty)(losses, logs)
    np.testing.assert_allclose(weights, 0.5 / losses, rtol=1e-3)


def test_one_log_variance_a_loss():
    with pytest.raises(
        ValueError, match=r"`log_variances` must have .*\(2,\); got \(3"
    ):
        uncertainty(jnp.ones(2), jnp.zeros(3))
