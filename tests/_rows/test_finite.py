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
    leaf = leaves("float16", 1.0)["terms"]
    text = jax.jit(lambda leaf: finite_rows([leaf], jnp.float32)).lower(leaf).as_text()
    assert "5x6x7x" not in text
    assert "5x3x7xf16" in text  # a factor


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_wide_dtypes_take_no_branch(dtype):
    given = leaves(dtype, 1.0)
    look = jax.jit(lambda leaves: finite_rows(list(leaves.values()), jnp.float32))
    text = look.lower(given).as_text()
    branches = [word for word in ("stablehlo.case", "stablehlo.while") if word in text]
    assert bool(branches) == (dtype == "float16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_term_is_finite_as_its_largest_entry_is(dtype):
    """At the end of the dtype: the last number, and the one that rounds to infinity."""
    last = np.asarray(jnp.finfo(dtype).max).astype(np.float64)
    right = np.ones((3, 1, 2))
    left = np.stack([[[last, 1.0]], [[-last, 1.0]], [[last, last]]]) / 2
    right[:, 0, 1] = 2, 2, 2.03125  # exact in every dtype
    rows = co.OuterProduct(
        jnp.asarray(left, dtype), jnp.asarray(right, dtype), (2, 2), dtype=dtype
    )
    assert finite_rows([rows], jnp.float32).tolist() == [True, True, False]
    assert np.isfinite(np.asarray(rows.materialize(), np.float32))[:2].all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_near_the_end_several_terms_count_as_overflown_but_in_narrow_dtypes(dtype):
    """The sum of the terms' largest entries is beyond the dtype, no entry is."""
    last, terms, far = float(jnp.finfo(dtype).max), 4, 0.5
    left = np.zeros((2, terms, terms))
    left[:, range(terms), range(terms)] = 1.0  # each in a line of its own
    right = np.full((2, terms, 3), far * last)
    right[1] = last / (1.125 * terms)  # in sum within the dtype
    rows = co.OuterProduct(
        *(jnp.asarray(x, dtype) for x in (left, right)), (terms, 3), dtype=dtype
    )
    assert np.isfinite(np.asarray(rows.materialize(), np.float32)).all()
    narrow = dtype == "float16"
    assert finite_rows([rows], jnp.float32).tolist() == [narrow, True]
