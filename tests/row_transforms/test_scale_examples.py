"""All rows times a number, factored or not."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from tests._stacks import B, factored


def scaled(transformation, rows, params):
    return transformation.update(rows, transformation.init(params), params)


def test_every_leaf_is_scaled_and_stays_factored():
    rows, params, stood_for = factored()
    result, state = scaled(co.scale_examples(-0.5), rows, params)
    for (name, leaf), exact in zip(result.items(), stood_for, strict=True):
        assert co.is_outer_product(leaf) == co.is_outer_product(rows[name])
        assert leaf.dtype == rows[name].dtype
        wanted = -0.5 * exact.reshape(leaf.shape)
        ours = np.asarray(co.materialize(leaf), float)
        # a power of 2, so nothing is rounded but sums of 4 products of size 20
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5)
    assert state.step == 1


def test_the_factor_may_be_a_schedule():
    rows, params = jnp.array([[3.0, 4.0]]), jnp.zeros(2)
    scale = co.scale_examples(lambda step: jnp.where(step == 0, 2.0, 3.0))
    first, state = scaled(scale, rows, params)
    second, state = scale.update(rows, state, params)
    assert (first.tolist(), second.tolist()) == ([[6, 8]], [[9, 12]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_row_stays_broken(bad):
    tx = optax.chain(co.scale_examples(0.0), co.mean())
    update, state = scaled(tx, jnp.array([[bad], [1.0]]), jnp.zeros(1))
    assert update.tolist() == [0]
    assert state[1].num_nonfinite == 1


def test_leaves_without_gradient_pass_and_shapes_are_checked():
    rows = {"w": jnp.ones((B, 4)), "count": jnp.ones((B,), jnp.int32), "no": None}
    params = {"w": jnp.ones(4), "count": jnp.ones((), jnp.int32), "no": None}
    result, _ = scaled(co.scale_examples(2.0), rows, params)
    assert result["count"].tolist() == [1] * B
    assert result["w"].tolist() == [[2.0] * 4] * B
    with pytest.raises(ValueError, match="already averaged"):
        scaled(co.scale_examples(2.0), jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError, match="`factor` must be a number"):
        co.scale_examples("half")
