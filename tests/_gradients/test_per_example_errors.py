"""Calls that cannot give rows: what is said, of which argument, in every way."""

import functools
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co

X = jnp.float32(np.random.default_rng(0).normal(size=(6, 3)))
Y = jnp.float32(np.random.default_rng(1).normal(size=(6,)))
W = jnp.array([1.0, -2.0, 0.5])


class Wrong(NamedTuple):
    """A call that is an error, and what the message says."""

    message: str
    given: tuple
    options: Mapping = MappingProxyType({})
    loss: callable = lambda w, x, *_: jnp.mean(x @ jax.tree.leaves(w)[0])


WRONG = {
    "argnums": Wrong(
        "`argnums` must name positional arguments of the call; got 2, but there are 2",
        (W, X),
        {"argnums": 2},
    ),
    "negative": Wrong("got -3, but there are 2", (W, X), {"batch_argnums": -3}),
    "key position": Wrong(
        "`prng_argnum` must name positional .*; got 4", (W, X), {"prng_argnum": 4}
    ),
    "bool position": Wrong(
        "`argnums` must be a position, .*; got True", (W, X), {"argnums": True}
    ),
    "name": Wrong("`batch_argnums` .*; got 'x'", (W, X), {"batch_argnums": "x"}),
    "no key": Wrong(
        "`prng_argnum` must name a random key; argument 2 is of type int",
        (W, X, 0),
        {"prng_argnum": 2},
    ),
    "string in the batch": Wrong(
        r"argument 1\['text'\] is 'cat'", (W, {"text": "cat", "x": X})
    ),
    "array of strings": Wrong(
        r"argument 1\[1\] is an array of <U3", (W, [X, np.array(["cat"] * 6)])
    ),
    "list of numbers": Wrong(r"argument 1\[0\] is a scalar", (W, [1.0, 2.0])),
    "no batch": Wrong(
        r"got 1, but there are 1. A loss that is closed over its batch .* argument",
        (W,),
        loss=lambda w: jnp.mean(X @ w),
    ),
    "batch not read": Wrong(
        r"`fun` does not read its batch, so all rows .*: `def loss\(params, batch\)",
        (W, X),
        loss=lambda w, _: jnp.mean((X @ w - Y) ** 2),
    ),
    "key, but no batch read": Wrong(
        "`fun` does not read its batch",
        (W, X, jax.random.key(0)),
        {"prng_argnum": 2},
        loss=lambda w, _, key: jnp.mean((X * jax.random.normal(key, (3,))[None]) @ w),
    ),
    "batch not read, jitted": Wrong(
        "`fun` does not read its batch",
        (W, X),
        loss=jax.jit(lambda w, _: jnp.mean((X @ w - Y) ** 2)),
    ),
    "labels closed over, jitted": Wrong(
        "`fun` takes a batch of 6 examples",
        (W, X),
        loss=jax.jit(lambda w, x: jnp.mean((x @ w - Y) ** 2)),
    ),
    "labels closed over": Wrong(
        "`fun` takes a batch of 6 examples and, as broadcasting hides, of 1, but none",
        (W, X),
        loss=lambda w, x: jnp.mean((x @ w - Y) ** 2),
    ),
    "group_size and num_rows": Wrong(
        "`num_rows` must be None with `group_size` above 1; got 3",
        (W, X),
        {"group_size": 2, "num_rows": 3},
    ),
    "num_rows": Wrong("`num_rows` must be at least 1; got 0", (W, X), {"num_rows": 0}),
    "num_rows that do not divide": Wrong(
        r"`num_rows` must divide .*; got 4 for 6. Leave out 2 examples or pad with 2",
        (W, X),
        {"num_rows": 4},
    ),
    "num_rows without a batch axis": Wrong(
        "`keep_batch_dim` must be True when `num_rows` is set; got False",
        (W, X),
        {"num_rows": 3, "keep_batch_dim": False},
    ),
    "keys of examples": Wrong(
        "one for each of 3 rows; argument 2 has 6. .* `batch_argnums`",
        (W, X, jax.random.split(jax.random.key(0), 6)),
        {"prng_argnum": 2, "group_size": 2},
    ),
    "integer parameter": Wrong(
        r"must be floating; argument 0\['n'\] is of type int", ({"w": W, "n": 3}, X)
    ),
    "integer array": Wrong(
        r"argument 0\['n'\] is an array of int32",
        ({"w": W, "n": jnp.arange(3)}, X),
    ),
    "vector": Wrong(
        r"A scalar is needed of `fun`.*an array \(1,\). Return the mean",
        (W, X),
        loss=lambda w, x: x @ w,
    ),
    "pair": Wrong(
        "A scalar is needed .* of type tuple. .* needs `has_aux=True`",
        (W, X),
        loss=lambda w, x: (jnp.mean(x @ w), x),
    ),
    "nothing": Wrong(
        "A scalar is needed .* of type NoneType", (W, X), loss=lambda w, x: None
    ),
    "no pair": Wrong(
        r"With `has_aux=True`, `fun` must return a pair \(loss, aux\)",
        (W, X),
        {"has_aux": True},
    ),
}
WAYS = {
    "rows": co.per_example_grad,
    "materialized": functools.partial(co.per_example_grad, materialize=True),
    "in memory": functools.partial(co.value_and_reduced_grad, reducer=co.mean()),
    "microbatches": functools.partial(
        co.value_and_reduced_grad, reducer=co.mean(), microbatch_size=2
    ),
    "explained": lambda loss, **options: functools.partial(co.explain, loss, **options),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", WRONG)
def test_errors_name_the_argument_and_no_inner_function(case, way):
    wrong = WRONG[case]

    def call():
        function = WAYS[way](wrong.loss, **wrong.options)
        state = {"state": co.mean().init(W)} if "mem" in way or "micro" in way else {}
        function(*wrong.given, **state)

    with pytest.raises(ValueError, match=wrong.message) as error:
        call()
    assert not re.search(r"<locals>|PyTreeDef|of_row|reduced", str(error.value))


def test_errors_of_jax_name_the_loss_and_its_argument():
    def branching(flag, w, x):
        return jnp.mean(x @ w) if w.sum() > 0 and flag else 0.0

    rows_of = co.per_example_grad(branching, argnums=1, batch_argnums=2)
    with pytest.raises(jax.errors.TracerBoolConversionError) as error:
        rows_of(True, W, X)
    assert "tracing the function branching at" in str(error.value)
    assert "value of the argument w." in str(error.value)


def with_labels(w, x, y):
    return jnp.mean((x @ w - y) ** 2)


def test_forgotten_labels_are_a_warning():
    says = "Argument 2 leads with 6 entries, .* `batch_argnums`; if not, .* keyword"
    with pytest.warns(UserWarning, match=says):
        wrong = co.per_example_grad(with_labels)(W, X, Y)
    right = co.per_example_grad(with_labels, batch_argnums=(1, 2))(W, X, Y)
    assert np.abs(co.materialize(wrong) - right).max() > 0.1  # what it is about
    with pytest.warns(UserWarning, match=says):
        co.per_example_grad(lambda w, x, y: with_labels(w, x, y[:2]), group_size=2)(
            W, X, Y
        )
    with pytest.warns(UserWarning, match="Argument 2 leads"):
        co.value_and_reduced_grad(with_labels, co.mean(), microbatch_size=2)(
            W, X, Y, state=co.mean().init(W)
        )
    found = co.check_per_example(with_labels, W, X, Y)
    assert re.search(says, found[0])


def test_what_may_be_shared_is_no_warning():
    """By keyword, of another length, a scalar, a tree of which only a part leads."""
    ignoring = lambda w, x, *_, **__: jnp.mean(x @ w)
    rows_of = co.per_example_grad(ignoring)
    rows_of(W, X, y=Y)
    rows_of(W, X, Y[:5], Y[0], {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)}, "x")
    rows_of(W, X[:2], jax.random.PRNGKey(0))
    rows_of(W, X[:1], jnp.ones((1, 4)))
    co.per_example_grad(ignoring, group_size=6)(W, X, Y)  # all examples are one row
    co.per_example_grad(ignoring, prng_argnum=2)(
        W, X, jax.random.split(jax.random.key(0), 6)
    )
