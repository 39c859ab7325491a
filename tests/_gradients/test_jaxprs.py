"""The walk back from a gradient goes past odd literals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import consensus_optax as co
from consensus_optax._gradients import jaxprs


@jax.custom_vjp
def quantized(x, scale):
    """A straight-through estimator with an integer argument, as int8 training has."""
    return jnp.round(x * 4) / 4 * scale.astype(x.dtype)[0]


def _forward(x, scale):
    return quantized(x, scale), scale


def _backward(scale, cotangent):
    return cotangent, jnp.zeros(scale.shape, jax.dtypes.float0)


quantized.defvjp(_forward, _backward)


@pytest.mark.parametrize("mode", ["plain", "checkpoint", "scan"])
def test_integers_without_gradients_in_a_custom_rule(mode):
    def layer(w, x, scale):
        return quantized(x @ w, scale)

    def loss(params, x, scale):
        w = params["w"]
        if mode == "scan":
            turn = lambda carry, _: (layer(w, carry, scale), None)
            return jnp.mean(lax.scan(turn, x, None, length=2)[0] ** 2)
        run = jax.checkpoint(layer) if mode == "checkpoint" else layer
        return jnp.mean(run(w, x, scale) ** 2)

    w = jnp.float32(np.random.default_rng(0).normal(size=(8, 8)))
    x = jnp.float32(np.random.default_rng(1).normal(size=(4, 8)))
    scale = jnp.array([2])
    rows = co.per_example_grad(loss)({"w": w}, x, scale)
    wanted = jax.vmap(jax.grad(loss), (None, 0, None))({"w": w}, x[:, None], scale)
    size = np.abs(wanted["w"]).max()  # sums of eight, twice over
    np.testing.assert_allclose(
        co.materialize(rows["w"]), wanted["w"], rtol=0, atol=5e-6 * size
    )


def test_a_float0_literal_is_no_zero():
    """It has no value to compare with."""
    nothing = np.zeros((), jax.dtypes.float0)
    literal = jax.extend.core.Literal(nothing, jax.typeof(nothing))
    assert not jaxprs._is_zero(literal)
    zero = jax.extend.core.Literal(0.0, jax.typeof(0.0))
    assert jaxprs._is_zero(zero)
