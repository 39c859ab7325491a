"""Rows of every kind under every reducer: factors, NumPy, bfloat16, no gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from tests._laws import close
from tests._stacks import B, factored, matrix, params
from tests.zoo import OF_EACH_KIND

every_reducer = pytest.mark.parametrize("row", OF_EACH_KIND)


@pytest.mark.slow
@pytest.mark.parametrize("row", OF_EACH_KIND)
def test_rows_of_every_kind_equal_what_they_stand_for(row):
    """Outer products, looked-up rows and bfloat16 arrays, against the plain loops.

    Then once more with a nan or an inf in one factor of three rows.
    """
    reducer = row.make()
    rows, parameters, stood_for = factored()
    update, fresh = jax.jit(reducer.update), reducer.init(parameters)
    updates, state = update(rows, fresh, parameters)
    expected = np.concatenate(row.reference(stood_for, np.ones(B)))
    close(matrix(updates)[None], expected[None], row.rtol, ["of every kind"])
    assert expected.any()
    assert (state.num_present, state.num_nonfinite) == (B, 0)

    broken = rows | {
        "dense": with_entry(rows["dense"], "left", (1, 0, 2), jnp.nan),
        "sequence": with_entry(rows["sequence"], "right", (4, 1, 0), jnp.inf),
        "table": with_entry(rows["table"], "right", (2, 3, 1), jnp.nan),
    }
    updates, state = update(broken, fresh, parameters)
    sound = [leaf[[0, 3, 5]] for leaf in stood_for]
    expected = np.concatenate(row.reference(sound, np.ones(3)))
    close(matrix(updates)[None], expected[None], row.rtol, ["three rows of six"])
    assert (state.num_present, state.num_nonfinite) == (3, 3)


def with_entry(leaf, side, index, value):
    """An outer product with one entry of a factor replaced."""
    factor = getattr(leaf, side).at[index].set(value)
    return dataclasses.replace(leaf, **{side: factor})


@every_reducer
def test_rows_may_be_numpy_arrays(row):
    reducer, parameters = row.make(), params()
    rows = jax.tree.map(lambda p: np.ones((B, *p.shape), p.dtype), parameters)
    trace = lambda state: reducer.update(rows, state, parameters)
    updates, _ = jax.eval_shape(trace, jax.eval_shape(reducer.init, parameters))
    same = lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype)
    assert jax.tree.all(jax.tree.map(same, updates, parameters))


def test_leaves_without_gradient_pass():
    """Integers, booleans, keys, float0, None and masked nodes among the parameters."""
    parameters = {
        "w": jnp.ones(2),
        "count": jnp.ones(3, jnp.int32),
        "flag": jnp.ones((), bool),
        "key": jax.random.key(0),
        "zero": jnp.ones(4, jnp.int32),
        "none": None,
        "masked": optax.MaskedNode(),
    }
    rows = parameters | {
        "w": jnp.ones((B, 2)),
        "count": jnp.ones((B, 3), jnp.int32),
        "flag": jnp.ones((B,), bool),
        "key": np.zeros((B,), jax.dtypes.float0),
        "zero": np.zeros((B, 4), jax.dtypes.float0),
    }
    for reducer in (co.sign_consensus(), co.cosine_filter()):
        updates, state = reducer.update(rows, reducer.init(parameters), parameters)
        assert updates["w"].tolist() == [1, 1]
        assert (updates["count"].dtype, updates["count"].tolist()) == (
            jnp.int32,
            [0] * 3,
        )
        assert (updates["flag"].dtype, bool(updates["flag"])) == (jnp.bool_, False)
        assert updates["key"].dtype == updates["zero"].dtype == jax.dtypes.float0
        assert (updates["key"].shape, updates["zero"].shape) == ((), (4,))
        assert updates["none"] is None
        assert updates["masked"] == optax.MaskedNode()
        assert state.consensus_ready


def test_no_leaf_at_all_is_no_update():
    """As below a label of `optax.partition` that no parameter has."""
    reducer = co.per_leaf(co.subspace_weighting())
    parameters = {"w": optax.MaskedNode()}
    updates, state = reducer.update(parameters, reducer.init(parameters), parameters)
    assert updates == parameters
    assert not state.consensus_ready
    assert state.step == 1
