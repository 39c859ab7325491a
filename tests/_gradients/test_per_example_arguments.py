"""What `jax.vmap(jax.grad)` takes as arguments, rows take as well, in every way."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co

X = jnp.float32(np.random.default_rng(0).normal(size=(6, 3)))
Y = jnp.float32(np.random.default_rng(1).normal(size=(6,)))
W = jnp.array([1.0, -2.0, 0.5])


class Layer(eqx.Module):
    """A module with a function among its leaves and a static field."""

    gain: jax.Array
    activation: callable
    name: str = eqx.field(static=True)


LAYER = Layer(jnp.float32(2), jnp.tanh, "square")


def flagged(w, x, squared):
    assert type(squared) is bool
    return jnp.mean((x @ w) ** 2) if squared else jnp.mean(x @ w)


def named(w, x, activation):
    return jnp.mean(getattr(jnp, activation)(x @ w))


def called(w, x, activation):
    return jnp.mean(activation(x @ w))


def of_module(w, x, layer):
    power = {"square": 2}[layer.name]
    return jnp.mean(layer.activation(x @ w) ** power) * layer.gain


def of_number(w, x, scale):
    assert type(scale) is float
    return jnp.mean(x @ w) * (scale if scale > 1 else 1.0)


def of_array(w, x, scale):
    return jnp.mean(x @ w) * scale.sum()


def of_numpy(w, x, scale):
    """What NumPy computes with is not traced."""
    return jnp.mean(x @ w) * (3.0 if np.sum(scale) > 1 else 1.0)


def of_many(w, x, options):
    assert options["none"] is None
    return flagged(w, x, options["flag"]) * options["scale"]


SHARED = {
    "bool": (flagged, True),
    "string": (named, "sin"),
    "function": (called, jnp.cos),
    "bound method": (called, jnp.array(3.0).__mul__),
    "module": (of_module, LAYER),
    "float": (of_number, 2.0),
    "array": (of_array, jnp.ones(2)),
    "numpy": (of_numpy, np.float32([1, 2])),
    "tree": (of_many, {"flag": False, "none": None, "scale": jnp.float32(2)}),
}


def expected(loss, shared):
    rows = jax.vmap(jax.grad(loss), (None, 0, None))(W, X[:, None], shared)
    return np.asarray(rows)


def assert_rows(got, wanted):
    # Sums of three numbers near 1, in another order.
    np.testing.assert_allclose(co.materialize(got), wanted, rtol=0, atol=3e-6)


@pytest.mark.parametrize("materialize", [False, True])
@pytest.mark.parametrize("case", SHARED)
def test_shared_arguments_are_as_under_vmap_of_grad(case, materialize):
    loss, shared = SHARED[case]
    wanted = expected(loss, shared)
    rows_of = co.per_example_grad(loss, materialize=materialize)
    assert_rows(rows_of(W, X, shared), wanted)
    values, rows = co.per_example_value_and_grad(loss)(W, X, shared)
    assert_rows(values, [loss(W, x[None], shared) for x in X])
    assert_rows(rows, wanted)
    assert_rows(jax.jit(lambda w, x: rows_of(w, x, shared))(W, X), wanted)


@pytest.mark.parametrize("case", ["bool", "string", "function", "float"])
def test_what_is_hashed_may_be_a_static_argument_of_jit(case):
    loss, shared = SHARED[case]
    step = jax.jit(co.per_example_grad(loss), static_argnums=2)
    assert_rows(step(W, X, shared), expected(loss, shared))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "microbatch_size"),
    [(co.median, None), (co.sign_consensus, 2), (co.mean, 4)],
)
@pytest.mark.parametrize("case", ["bool", "string", "module", "array", "tree"])
def test_shared_arguments_in_microbatches(case, rule, microbatch_size):
    loss, shared = SHARED[case]
    rule = rule()
    reduced = co.value_and_reduced_grad(loss, rule, microbatch_size=microbatch_size)
    value, update, _ = reduced(W, X, shared, state=rule.init(W))
    wanted, _ = rule.update(jnp.asarray(expected(loss, shared)), rule.init(W), W)
    assert_rows(update, wanted)
    assert_rows(value, np.mean([loss(W, x[None], shared) for x in X]))


@pytest.mark.parametrize("case", SHARED)
def test_shared_arguments_are_explained_and_checked(case, capsys):
    loss, shared = SHARED[case]
    co.explain(loss, W, X, shared)
    co.explain(loss, jax.ShapeDtypeStruct((3,), jnp.float32), X, shared)
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert first.startswith("(root)  (3,)")
    assert co.check_per_example(loss, W, X, shared) == []


def test_shapes_are_enough_to_explain_shared_arrays(capsys):
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    loss = lambda w, x, scale, flag: flagged(w, x, flag) * scale
    co.explain(loss, shape(W), shape(X), shape(jnp.float32(2)), True)
    assert capsys.readouterr().out.startswith("(root)  (3,)")


def of_floats(params, x):
    return jnp.mean(jnp.tanh(x @ W * params["scale"] + params["shift"]))


@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_parameters_may_be_floats_of_python(microbatch_size):
    params = {"scale": 0.5, "shift": -1.0}
    wanted = jax.vmap(jax.grad(of_floats), (None, 0))(params, X[:, None])
    rows = co.per_example_grad(of_floats)(params, X)
    jax.tree.map(assert_rows, rows, wanted)
    rule = co.mean()
    reduced = co.value_and_reduced_grad(
        of_floats, rule, microbatch_size=microbatch_size
    )
    _, update, _ = reduced(params, X, state=rule.init(params))
    jax.tree.map(lambda u, rows: assert_rows(u, rows.mean(0)), update, wanted)


def test_arguments_are_counted_from_both_ends():
    loss = lambda config, x, w: jnp.mean((x @ w) ** config["power"])
    given = ({"power": 2}, X, W)
    wanted = co.per_example_grad(lambda w, x: loss(given[0], x, w))(W, X)
    for argnums, batch_argnums in (
        (2, 1),
        (-1, -2),
        (np.int64(2), np.int32(1)),
        (np.int8(-1), np.uint8(1)),
    ):
        options = {"argnums": argnums, "batch_argnums": batch_argnums}
        assert_rows(co.per_example_grad(loss, **options)(*given), wanted)
        rule = co.mean()
        for size in (None, 2):
            reduced = co.value_and_reduced_grad(
                loss, rule, microbatch_size=size, **options
            )
            update = reduced(*given, state=rule.init(W))[1]
            assert_rows(update, np.mean(wanted, 0))
        assert co.check_per_example(loss, *given, **options) == []
    (rows,) = co.per_example_grad(loss, argnums=[-1], batch_argnums=[-2])(*given)
    assert_rows(rows, wanted)
    keyed = lambda w, x, key: jnp.mean(x @ w) * jax.random.uniform(key)
    first, last = (
        co.per_example_grad(keyed, prng_argnum=at)(W, X, jax.random.key(0))
        for at in (2, np.int64(-1))
    )
    assert_rows(first, last)
