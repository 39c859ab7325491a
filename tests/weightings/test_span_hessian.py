"""The Hessian between rows, against the full Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co

pytestmark = pytest.mark.slow


def loss(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["w"] + params["b"][None])
    return jnp.mean((hidden @ params["v"] - y) ** 2)


def problem():
    random = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    params = {"w": normal(3, 4), "b": normal(4), "v": normal(4)}
    return params, (normal(6, 3), normal(6))


@pytest.mark.parametrize("materialize", [True, False])
def test_equals_rows_times_the_full_hessian(materialize):
    params, batch = problem()
    rows = co.per_example_grad(loss, materialize=materialize)(params, batch)
    got = jax.jit(co.span_hessian, static_argnums=0)(loss, params, rows, batch)
    flat, restore = jax.flatten_util.ravel_pytree(params)
    hessian = jax.hessian(lambda x: loss(restore(x), batch))(flat)
    rows = co.materialize(rows)
    matrix = jax.vmap(lambda row: jax.flatten_util.ravel_pytree(row)[0])(rows)
    wanted = np.asarray(matrix @ hessian @ matrix.T)
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_array_equal(got, got.T)


def test_checks_the_rows():
    params, batch = problem()
    with pytest.raises(ValueError, match="already averaged"):
        co.span_hessian(loss, params, jax.grad(loss)(params, batch), batch)
