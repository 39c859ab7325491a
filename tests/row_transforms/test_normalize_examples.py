"""Every row of length 1."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import consensus_optax as co
from tests._stacks import factored


def test_every_row_has_one_vote():
    """Also one whose square is no float."""
    sizes = [[0.0, 1e25], [1e-30, 0.0]]
    rows = jnp.array([[3.0, 4.0], [0.0, 10.0], [0.0, 0.0], *sizes])
    params = jnp.zeros(2)
    rule = co.normalize_examples()
    result, _ = jax.jit(rule.update)(rows, rule.init(params), params)
    wanted = [[0.6, 0.8], [0, 1], [0, 0], [0, 1], [1, 0]]
    np.testing.assert_allclose(result, wanted, rtol=1e-6)  # one division


def test_before_the_mean_it_is_the_normalized_mean():
    rows, params, _ = factored()
    rows = {k: v for k, v in rows.items() if k != "array"}  # bfloat16 would round
    params = {k: v for k, v in params.items() if k != "array"}
    tx = optax.chain(co.normalize_examples(), co.mean())
    result, _ = jax.jit(tx.update)(rows, tx.init(params), params)
    rule = co.normalized_mean()
    wanted, _ = jax.jit(rule.update)(rows, rule.init(params), params)
    for name in wanted:
        np.testing.assert_allclose(  # factors are scaled before they are multiplied
            result[name], wanted[name], rtol=0, atol=1e-6
        )
