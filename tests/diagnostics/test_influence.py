"""Inner products with a target, and two uses of them whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from consensus_optax import diagnostics

pytestmark = pytest.mark.standard_promotion  # optax mixes types in Adam


def cast(x, dtype=jnp.float32):
    return jnp.asarray(x, dtype)


def given(seed=0, count=6):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: cast(rng.normal(size=shape))
    lazy = co.OuterProduct(normal(count, 2, 3), normal(count, 2, 5), row_shape=(3, 5))
    rows = {"lazy": lazy, "low": normal(count, 6).astype(jnp.bfloat16)}
    return rows, {"lazy": normal(3, 5), "low": normal(6)}


def flat(tree):
    return [np.asarray(cast(leaf), np.float64) for leaf in jax.tree.leaves(tree)]


def test_equals_the_rows_multiplied_out():
    rows, target = given()
    arrays, directions = flat(co.materialize(rows)), flat(target)
    wanted = sum(
        x.reshape(6, -1) @ t.ravel() for x, t in zip(arrays, directions, strict=True)
    )
    got = jax.jit(diagnostics.influence)(rows, target)
    # sums of 21 products of numbers about 1
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_rows_are_not_multiplied_out():
    left, right = jnp.ones((8, 2, 30)), jnp.ones((8, 2, 40))
    rows = co.OuterProduct(left, right, row_shape=(30, 40))
    program = jax.jit(diagnostics.influence).lower(rows, jnp.ones((30, 40))).compile()
    assert "8,30,40" not in program.as_text()


def test_a_bad_row_is_alone():
    rows, target = given()
    bad = {**rows, "low": rows["low"].at[2, 0].set(jnp.nan)}
    got = np.asarray(diagnostics.influence(bad, target))
    clean = np.asarray(diagnostics.influence(rows, target))
    assert not np.isfinite(got[2])
    np.testing.assert_array_equal(np.delete(got, 2), np.delete(clean, 2))


def regression(count=20, bad=4):
    """Noiseless examples, but the first few, whose labels have the wrong sign."""
    rng = np.random.default_rng(1)
    x, truth = rng.normal(size=(count, 5)), rng.normal(size=5)
    y = x @ truth
    y[:bad] *= -1
    clean = rng.normal(size=(50, 5))
    return (x, y), (clean, clean @ truth)


def loss(w, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2)


@pytest.mark.slow
def test_influence_is_what_leaving_a_row_out_changes():
    """The loss on clean data after a step with and without each example, in float64."""
    with jax.enable_x64(True):
        train, clean = jax.tree.map(jnp.asarray, regression())
        w, rate = jnp.zeros(5), 1e-6
        rows = co.per_example_grad(loss)(w, train)
        score = diagnostics.influence(rows, jax.grad(loss)(w, clean))
        after = lambda weights: loss(w - rate * (weights @ rows), clean)
        without = jax.vmap(after)(1 - jnp.eye(20))
        change = (without - after(jnp.ones(20))) / rate
        # of first order in the rate
        np.testing.assert_allclose(score, change, rtol=1e-3, atol=1e-4)


def test_rows_with_wrong_labels_are_found():
    """From 0, on clean data of unit covariance, an example's number is y_i x_i t."""
    (x, y), _ = regression()
    clean = np.sqrt(5) * np.eye(5)
    truth = np.linalg.lstsq(x[4:], y[4:], rcond=None)[0]
    train, clean = jax.tree.map(cast, ((x, y), (clean, clean @ truth)))
    rows = co.per_example_grad(loss)(jnp.zeros(5), train)
    score = diagnostics.influence(rows, jax.grad(loss)(jnp.zeros(5), clean))
    # products of numbers about 3
    np.testing.assert_allclose(score, y * (x @ truth), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(score) < 0), [0, 1, 2, 3])


@pytest.mark.slow
def test_under_adam_is_the_derivative_of_its_step():
    """By finite differences of the loss after Adam's step, v held where it is."""
    with jax.enable_x64(True):
        train, clean = jax.tree.map(jnp.asarray, regression())
        adam, w = optax.adam(1.0), jnp.zeros(5)
        state = adam.init(w)
        for _ in range(3):
            update, state = adam.update(jax.grad(loss)(w, train), state, w)
            w = optax.apply_updates(w, 0.01 * update)
        rows = co.per_example_grad(loss)(w, train)
        target = diagnostics.under_adam(jax.grad(loss)(w, clean), state)
        score = diagnostics.influence(rows, target)
        moments = state[0].nu / (1 - 0.999 ** state[0].count)
        step = lambda row: w - 1e-7 * row / (jnp.sqrt(moments) + 1e-8)
        change = (
            loss(w, clean) - jax.vmap(lambda g: loss(step(g), clean))(rows)
        ) / 1e-7
        np.testing.assert_allclose(score, change, rtol=1e-3, atol=1e-4)


def test_what_is_no_target():
    rows, target = given()
    with pytest.raises(ValueError, match="`target` must be a tree like"):
        diagnostics.influence(rows, None)
    with pytest.raises(ValueError, match="leaf `\\['low'\\]`"):
        diagnostics.influence(rows, {**target, "low": jnp.ones(7)})
    with pytest.raises(ValueError, match="`state` must hold Adam's second moments"):
        diagnostics.under_adam(target, optax.sgd(1.0).init(target))
