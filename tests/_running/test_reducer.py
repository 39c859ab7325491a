"""What leaves a reducer: numbers that its parameters can hold, or nothing."""

import jax.numpy as jnp
import pytest

import consensus_optax as co


@pytest.mark.parametrize(("size", "fits"), [(2e4, True), (4e4, False)])
def test_an_update_that_overflows_in_one_leaf_is_none_in_all(size, fits):
    """The sum of two rows, of which float16 holds 65504 at most."""
    total = lambda products, roster, state: (jnp.sign(roster.weights), state)
    rule = co.reducer(co.Weighting(total, reads="nothing"))
    params = {"large": jnp.zeros(2, jnp.float16), "small": jnp.zeros(1, jnp.float16)}
    large = jnp.array([[size, 1], [size, 1]], jnp.float16)
    rows = {"large": large, "small": jnp.ones((2, 1), jnp.float16)}
    updates, state = rule.update(rows, rule.init(params), params)
    assert updates["large"].tolist() == ([2 * size, 2] if fits else [0, 0])
    assert updates["small"].tolist() == ([2] if fits else [0])
    assert bool(state.consensus_ready) is bool(state.ready) is fits
    assert (state.num_present, state.num_nonfinite) == (2, 0)
