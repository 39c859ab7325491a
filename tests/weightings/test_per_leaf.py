"""What reads no gradient has nothing to tell leaves apart by."""

import jax
import jax.numpy as jnp
import pytest

import consensus_optax as co

ROWS = {"a": jnp.arange(6.0).reshape(3, 2), "b": jnp.array([1.0, -2.0, 5.0])}
RULES = {
    "mean": co.mean(),
    "random_weights": co.random_weights(jax.random.key(0)),
    "constant": co.constant(jnp.array([1.0, 2.0, 0.5])),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_reads_no_gradient_stays_what_it_is(name):
    params = jax.tree.map(lambda x: jnp.zeros_like(x[0]), ROWS)
    rule = RULES[name]
    alone, apart = (
        each.update(ROWS, each.init(params), params)
        for each in (rule, co.per_leaf(rule))
    )
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), alone, apart))
