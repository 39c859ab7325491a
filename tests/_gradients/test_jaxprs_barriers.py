"""Equations evaluated in place keep what their call asked of the compiler."""

import jax
import jax.numpy as jnp
import pytest

import consensus_optax as co

DEPTH = 4


def loss(prevent_cse):
    layer = lambda x, w: jnp.sin(jnp.sin(jnp.sin(x @ w)))
    remat = jax.checkpoint(layer, prevent_cse=prevent_cse)

    def of_batch(ws, x):
        for w in ws:
            x = remat(x, w)
        return jnp.mean(x**2)

    return of_batch


@pytest.mark.parametrize("prevent_cse", [True, False])
def test_what_is_to_be_computed_again_is_not_shared_with_the_first_time(prevent_cse):
    """As `jax.vmap(jax.grad)` has it: a barrier for every layer that asks for one."""
    ws, x = [jnp.ones((3, 3))] * DEPTH, jnp.ones((2, 3))
    ours = co.per_example_grad(loss(prevent_cse))
    barriers = str(jax.make_jaxpr(ours)(ws, x)).count("optimization_barrier")
    assert barriers == DEPTH * prevent_cse
