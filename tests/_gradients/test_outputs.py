"""Rows of outputs are a Jacobian, and what natural gradients are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from consensus_optax import diagnostics
from tests._models import assert_close

pytestmark = pytest.mark.standard_promotion  # optax mixes types in Adam
ROWS = 6


def given(*sides, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    names = ("up", "down")
    params = {name: draw(*side) for name, side in zip(names, sides, strict=True)}
    return params, draw(ROWS, sides[0][0])


def model(params, x):
    return jnp.tanh(x @ params["up"]) @ params["down"]


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("keep_batch_dim", [True, False])
def test_rows_are_the_jacobian(outputs, keep_batch_dim):
    params, x = given((8, 16), (16, outputs))
    find = co.output_value_and_grad(model, keep_batch_dim=keep_batch_dim)
    values, rows = jax.jit(find)(params, x)
    assert isinstance(rows["up"], co.OuterProduct)
    dense = jax.jacrev(model)(params, x)
    wanted = jax.tree.map(
        lambda leaf, param: leaf.reshape(-1, *param.shape), dense, params
    )
    # sums of at most 16 float32 terms
    jax.tree.map(
        lambda got, like: assert_close(got, like, 1e-5), co.materialize(rows), wanted
    )
    assert_close(values, model(params, x).reshape(-1), 1e-6)


@pytest.mark.slow
def test_the_tangent_kernel():
    params, x = given((8, 16), (16, 2))
    kernel = diagnostics.gramian(co.output_grad(model)(params, x))
    dense = jax.tree.leaves(jax.jacrev(model)(params, x))
    flat = np.concatenate(
        [np.asarray(leaf, np.float64).reshape(2 * ROWS, -1) for leaf in dense], 1
    )
    assert_close(kernel, flat @ flat.T, 1e-5)  # sums of 160 products


def test_aux_and_what_is_no_output():
    params, x = given((8, 16), (16, 2))
    with_aux = lambda params, x: (model(params, x), {"x": x.sum()})
    rows, aux = co.output_grad(with_aux, has_aux=True)(params, x)
    assert aux["x"].shape == (ROWS,)
    assert rows["down"].shape == (2 * ROWS, 16, 2)
    with pytest.raises(ValueError, match="Outputs must be one floating array"):
        co.output_grad(lambda params, x: {"y": model(params, x)})(params, x)


def network(params, t):
    return jnp.tanh(t * params["w"] + params["b"]) @ params["v"]


def equation(params, t):
    """What is left of y' = -y, y(0) = 1, at one time; each a residual."""
    y, slope = jax.value_and_grad(network, 1)(params, t)
    start = network(params, 0.0) - 1
    return jnp.stack([slope + y, start])


def start():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"w": draw(16), "b": draw(16), "v": 0.1 * draw(16)}


def squares(params, times):
    return 0.5 * jnp.mean(jax.vmap(equation, (None, 0))(params, times) ** 2)


@pytest.mark.slow
def test_an_equation_is_solved_in_far_fewer_steps_than_by_adam():
    """A network fitted to an equation: 40 steps through the Gramian, 400 of Adam."""
    times = jnp.linspace(0.0, 2.0, 24)
    rule = co.gauss_newton(optax.exponential_decay(1.0, 1, 0.7, end_value=1e-4), 0.5)
    of_outputs = co.output_value_and_grad(equation, keep_batch_dim=False)
    adam = optax.adam(1e-2)

    def natural(carry, _):
        params, state = carry
        values, rows = of_outputs(params, times)
        step, state = rule.update(rows, state, params, values=values)
        return (jax.tree.map(jnp.subtract, params, step), state), None

    def plain(carry, _):
        params, state = carry
        step, state = adam.update(jax.grad(squares)(params, times), state, params)
        return (optax.apply_updates(params, step), state), None

    def after(step, init, length):
        carry = (start(), init(start()))
        return jax.jit(lambda: jax.lax.scan(step, carry, None, length)[0][0])()

    fitted, slow = after(natural, rule.init, 40), after(plain, adam.init, 400)
    assert squares(fitted, times) < 1e-3 * squares(slow, times)
    found = jax.vmap(network, (None, 0))(fitted, times)
    # the equation damps errors: they are no larger than what is left of it
    left = abs(jax.vmap(equation, (None, 0))(fitted, times)).max()
    assert left < 1e-3
    np.testing.assert_allclose(found, np.exp(-times), atol=2 * float(left) + 1e-6)
