import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax import Roster


def rows_of(weights, step=0):
    return Roster(jnp.asarray(weights, jnp.float32), jnp.asarray(step, jnp.int32), {})


@pytest.mark.parametrize(("count", "size"), [(6, 2), (7, 3), (5, 1), (4, 9)])
def test_every_row_is_in_one_bucket(count, size):
    mixing = co.bucketing(size, jax.random.key(1))
    matrix, weights = mixing.mix(None, rows_of(np.ones(count)))
    assert matrix.shape == (-(-count // size), count)
    np.testing.assert_allclose((matrix * weights[:, None]).sum(0), np.ones(count))
    np.testing.assert_allclose(matrix.sum(1), np.ones(len(matrix)), rtol=1e-6)
    inside = (np.asarray(matrix) > 0).sum(1)
    assert (inside[:-1] == size).all()
    assert weights.tolist() == inside.tolist()


def test_groups_change_from_step_to_step_and_not_otherwise():
    mixing = co.bucketing(2, jax.random.key(1))
    of = lambda step: np.asarray(mixing.mix(None, rows_of(np.ones(8), step))[0])
    np.testing.assert_array_equal(of(0), of(0))
    assert any((of(0) != of(step)).any() for step in (1, 2))


def test_padding_changes_nothing():
    mixing = co.bucketing(2, jax.random.key(1))
    alone = mixing.mix(None, rows_of([1, 2, 1, 3]))
    padded = mixing.mix(None, rows_of([1, 2, 1, 3, 0, 0, 0]))
    np.testing.assert_array_equal(padded[0][:2, :4], alone[0])
    np.testing.assert_array_equal(padded[1], [*alone[1].tolist(), 0, 0])
    assert not np.asarray(padded[0])[2:].any()


def test_the_weighted_mean_stays():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)), jnp.float32)
    weights = jnp.array([1.0, 2, 0, 1, 5, 1, 1])
    params = jnp.zeros(3)
    for legacy in (False, True):
        key = jax.random.PRNGKey(2) if legacy else jax.random.key(2)
        for inner in (co.mean(),):
            rule = co.after(co.bucketing(3, key), inner)
            state = rule.init(params)
            mixed = jax.jit(rule.update)(rows, state, params, weights=weights)[0]
            plain = inner.update(rows, inner.init(params), params, weights=weights)[0]
            np.testing.assert_allclose(mixed, plain, rtol=1e-5, atol=1e-6)


def test_the_size_is_a_count():
    with pytest.raises(ValueError, match="`bucket_size` must be at least 1; got 0"):
        co.bucketing(0, jax.random.key(0))
