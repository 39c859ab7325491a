"""Rows whose factors are finite and whose product is not are absent, and counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax._rows.finite import finite_rows


def leaves(dtype, scale):
    """Five rows of every kind: 0 sound, 1 beyond the dtype, 2 with a nan, 3 large but
    cancelling or spread so that only the bound is beyond, 4 zero."""
    rng = np.random.default_rng(0)

    def factors(*sides):
        a, d = (rng.normal(size=(5, *side)) for side in sides)
        a[1], d[1] = a[1] * scale, d[1] * scale
        d[2].flat[0] = np.nan
        a[3], d[3] = 0, 0  # disjoint: a norm each of all entries, products of none
        a[3].flat[0], d[3].flat[-1] = scale, scale
        a[4] = 0
        return jnp.asarray(a, dtype), jnp.asarray(d, dtype)

    several = factors((3, 6), (3, 7))
    layers = factors((2, 3, 6), (2, 3, 7))
    one = factors((1, 6), (1, 7))
    one = (one[0].at[3].set(0), one[1])
    words = jnp.asarray(rng.integers(0, 4, (5, 6)), jnp.int32).at[1].set(2)
    added = rng.normal(size=(5, 6, 3))
    added[1] = float(jnp.finfo(dtype).max) / 2  # six of them in one line
    added[2].flat[0] = np.nan
    added[3].flat[:2] = float(jnp.finfo(dtype).max) / 2  # in lines of their own
    words = words.at[3].set(jnp.arange(6) % 4)
    of = lambda pair, shape: co.OuterProduct(*pair, shape, dtype=jnp.dtype(dtype))
    return {
        "terms": of(several, (6, 7)),
        "layers": of(layers, (2, 6, 7)),
        "one term": of(one, (6, 7)),
        "look-up": of((words, jnp.asarray(added, dtype)), (4, 3)),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "scale"), [("float32", 1e25), ("float16", 3e3)])
def test_finite_rows_are_those_of_the_array(dtype, scale):
    for name, leaf in leaves(dtype, scale).items():
        given = jax.jit(lambda leaf: finite_rows([leaf], jnp.float32))(leaf)
        rows = np.asarray(leaf.materialize(), np.float64)
        expected = np.isfinite(rows.reshape(5, -1)).all(1)
        assert given.tolist() == expected.tolist() == [True, False, False, True, True]
        assert leaf.shape[0] == 5, name


def test_no_nan_is_made_to_find_one():
    leaf = leaves("float32", 1e25)["terms"]
    left, right = leaf.left, leaf.right.at[4].set(jnp.inf)  # of a row whose left is 0
    leaf = co.OuterProduct(left.at[4].set(0), right.at[2].set(jnp.inf), (6, 7))
    with jax.debug_nans(True):
        given = jax.jit(lambda leaf: finite_rows([leaf], jnp.float32))(leaf)
    assert given.tolist() == [True, False, False, True, False]


@pytest.mark.slow
def test_an_overflowing_product_is_counted_out():
    w, x = jnp.ones((8, 16)), jnp.ones((4, 8))
    loss = lambda w, x: jnp.sum(x @ w * jnp.mean(jax.lax.stop_gradient(x)))
    x = x.at[1].set(1e25)  # 1e25 times a cotangent of 1e25
    rows = co.per_example_grad(loss)(w, x)
    assert co.is_outer_product(rows)
    for rule in (co.mean(), co.median(), co.sign_consensus()):
        update, state = rule.update(rows, rule.init(w), w)
        assert state.num_nonfinite == 1
        assert np.isfinite(update).all()
        assert update.tolist() == jnp.ones((8, 16)).tolist()


def test_no_stack_is_planned_for():
    leaf = leaves("float32", 1.0)["terms"]
    text = jax.jit(lambda leaf: finite_rows([leaf], jnp.float32)).lower(leaf).as_text()
    assert "5x6x7xf32" not in text
    assert "5x3x7xf32" in text  # a factor
