import jax
import jax.numpy as jnp
import pytest

import consensus_optax as co


def test_too_many_subsets_are_an_error_that_names_other_rules():
    rule, params = co.minimum_diameter(8), jnp.zeros(2)
    with pytest.raises(ValueError, match="at most 50000 subsets") as error:
        jax.eval_shape(rule.update, jnp.ones((24, 2)), rule.init(params), params)
    assert "co.krum" in str(error.value)


@pytest.mark.slow
def test_subsets_of_one_diameter_share():
    rule, params = co.minimum_diameter(1), jnp.zeros(1)
    rows = jnp.array([[0.0], [1.0], [2.0]])  # either neighbour of the middle
    assert jax.jit(rule.update)(rows, rule.init(params), params)[0] == 1.0
