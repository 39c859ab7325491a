"""The walk back from a gradient: linear in the program, and past odd literals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core.primitives import add_jaxvals_p

import consensus_optax as co
from consensus_optax._gradients import jaxprs
from consensus_optax._gradients.jaxprs import ends


def doubled(x):
    """A sum with 2**60 paths to its start, and a depth beyond any recursion."""
    for _ in range(60):
        x = add_jaxvals_p.bind(x, x)
    for _ in range(1000):
        x = add_jaxvals_p.bind(x[None][0], jnp.sin(x))
    return x


def in_a_call(x):
    return jax.jit(doubled)(x) if x.ndim else x


def in_a_scan(x):
    return lax.scan(lambda carry, _: (carry, doubled(x)), 0.0, length=2)[1]


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (doubled, {"input", "sin"}),
        (in_a_call, {"input", "sin"}),
        (in_a_scan, {"input in scan", "sin in scan"}),
    ],
)
def test_every_end_is_named_once_however_many_paths_lead_there(function, wanted):
    jaxpr = jax.make_jaxpr(function)(jnp.ones(3)).jaxpr
    (found,) = ends(jaxpr, jaxpr.outvars)
    assert set(found) == wanted
    assert len(found) == 2


class Counting(dict):
    """Producers that count how often they are asked."""

    asked = 0

    def __getitem__(self, var):
        Counting.asked += 1
        return super().__getitem__(var)


def test_every_variable_is_visited_at_most_twice(monkeypatch):
    """Once on the way down, once with what lies below; of all gradients together."""

    def loss(params, x):
        for w in params:
            x = jnp.tanh(x @ w + params[0][None])
        return jnp.mean(x)

    square = jnp.ones((4, 4))
    grad = functools.partial(jax.grad(loss), [square] * 160)
    jaxpr = jax.make_jaxpr(grad)(jnp.ones((2, 4, 4))).jaxpr
    producers = jaxprs._producers
    monkeypatch.setattr(jaxprs, "_producers", lambda jaxpr: Counting(producers(jaxpr)))
    found = ends(jaxpr, jaxpr.outvars)
    assert len(found) == 160
    assert 160 <= Counting.asked <= 2 * len(jaxpr.eqns)


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
