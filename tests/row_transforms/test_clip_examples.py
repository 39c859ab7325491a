"""Per-example clipping of arrays and of outer products."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from tests._stacks import B, factored


def scaled(transformation, rows, params):
    return jax.jit(transformation.update)(rows, transformation.init(params), params)


def norms(rows):
    leaves = [np.asarray(x, float).reshape(x.shape[0], -1) for x in rows.values()]
    return np.linalg.norm(np.concatenate(leaves, 1), axis=1)


def test_longer_rows_are_shortened_and_others_unchanged():
    rows = {"a": jnp.array([[3.0], [0.3], [0.0]]), "b": jnp.array([4.0, 0.4, 0.0])}
    params = {"a": jnp.zeros(1), "b": jnp.zeros(())}
    result, state = scaled(co.clip_examples(1.0), rows, params)
    np.testing.assert_allclose(result["a"][:, 0], [0.6, 0.3, 0], rtol=1e-6)  # 1 / 5
    np.testing.assert_allclose(result["b"], [0.8, 0.4, 0], rtol=1e-6)  # as above
    assert state.rule_state.scaled_share == pytest.approx(1 / 3)


def test_a_limit_of_zero_leaves_nothing():
    rows = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    result, _ = scaled(co.clip_examples(0.0), rows, jnp.zeros(2))
    assert result.tolist() == [[0, 0], [0, 0]]


def test_factored_rows_stay_factored():
    rows, params, stood_for = factored()
    lengths = np.linalg.norm(np.concatenate(stood_for, 1), axis=1)
    limit = float(np.median(lengths))
    result, state = scaled(co.clip_examples(limit), rows, params)
    assert all(co.is_outer_product(result[name]) for name in ("dense", "sequence"))
    wanted = np.minimum(lengths, limit)
    np.testing.assert_allclose(  # a scaled bfloat16 array is a bfloat16 array
        norms(co.materialize(result)), wanted, rtol=2e-3
    )
    assert state.rule_state.scaled_share == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_row_without_a_finite_norm_is_left_to_the_reducer(bad):
    """It becomes nan altogether, and is excluded and counted: never a row of zeros."""
    rows = jnp.array([[bad, bad], [3.0, 4.0]])
    tx = optax.chain(co.clip_examples(1.0), co.mean())
    result, state = scaled(tx, rows, jnp.zeros(2))
    np.testing.assert_allclose(result, [0.6, 0.8], rtol=1e-6)  # one division
    assert state[1].num_nonfinite == 1


def test_leaves_without_gradient_pass():
    rows = {"w": jnp.ones((B, 4)), "count": jnp.ones((B,), jnp.int32), "no": None}
    params = {"w": jnp.ones(4), "count": jnp.ones((), jnp.int32), "no": None}
    result, _ = scaled(co.clip_examples(1.0), rows, params)
    assert result["count"].tolist() == [1] * B
    assert result["w"].tolist() == [[0.5] * 4] * B


def test_the_limit_may_be_a_schedule():
    rows, params = jnp.array([[3.0, 4.0]]), jnp.zeros(2)
    clip = co.clip_examples(lambda step: jnp.where(step == 0, 5.0, 0.5))
    first, state = scaled(clip, rows, params)
    second, state = jax.jit(clip.update)(rows, state, params)
    assert first.tolist() == [[3, 4]]
    np.testing.assert_allclose(second, [[0.3, 0.4]], rtol=1e-6)  # one division
    assert state.step == 2


def test_shapes_are_checked_where_parameters_are_given():
    clip = co.clip_examples(1.0)
    with pytest.raises(ValueError, match="already averaged"):
        scaled(clip, jnp.ones(3), jnp.ones(3))
    result, _ = jax.jit(clip.update)(jnp.ones((2, 4)), clip.init(None))
    assert result.tolist() == [[0.5] * 4] * 2
