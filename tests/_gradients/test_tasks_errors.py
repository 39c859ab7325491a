"""Calls that cannot give rows of several losses: what is said, of which key."""

import re

import jax.numpy as jnp
import pytest

import consensus_optax as co

X, W = jnp.ones((6, 3)), jnp.ones(3)

WRONG = {
    "scalar": (lambda w, x: w.sum(), {}, r"vector \(K,\) or a dict.*float32 \(\)"),
    "matrix": (lambda w, x: x, {}, r"an array of float32 \(6, 3\)"),
    "pair": (lambda w, x: (w.sum(), w), {}, "of type tuple. .*`has_aux=True`"),
    "no pair": (lambda w, x: w, {"has_aux": True}, r"a pair \(losses, aux\)"),
    "nothing": (lambda w, x: {}, {}, "the dict has none"),
    "empty": (lambda w, x: w[:0], {}, "the vector is empty"),
    "vector in a dict": (
        lambda w, x: {"fit": w.sum(), "edge": w},
        {},
        r"that at \['edge'\] is an array \(3,\). Return its mean",
    ),
    "integer": (
        lambda w, x: {"fit": w.sum(), "count": jnp.int32(3)},
        {},
        r"must be floating; that at \['count'\] is an array of int32",
    ),
    "number": (lambda w, x: {"fit": 3}, {}, r"that at \['fit'\] is of type int"),
    "string": (lambda w, x: {"fit": "a"}, {}, r"that at \['fit'\] is 'a'"),
    "complex": (
        lambda w, x: w.astype(jnp.complex64),
        {},
        "the vector is an array of complex64",
    ),
    "integers": (lambda w, x: x.argmax(1), {}, "the vector is an array of int32"),
    "argnums": (lambda w, x: w, {"argnums": 2}, "`argnums` must name .*; got 2"),
    "both sizes": (
        lambda w, x: w,
        {"group_size": 1, "microbatch_size": 2},
        "`microbatch_size` must be None with `group_size`.*; got 2",
    ),
    "rows and microbatches": (
        lambda w, x: w,
        {"num_rows": 3, "microbatch_size": 2},
        "`microbatch_size` must be None with `num_rows`.*; got 2",
    ),
    "rows and groups": (
        lambda w, x: w,
        {"num_rows": 3, "group_size": 2},
        "`num_rows` must be None with `group_size` above 1; got 3",
    ),
    "not so many rows": (
        lambda w, x: w,
        {"num_rows": 4},
        "`num_rows` must divide the number of examples.*; got 4 for 6",
    ),
    "rows without a batch axis": (
        lambda w, x: w,
        {"num_rows": 3, "keep_batch_dim": False},
        "`keep_batch_dim` must be True when `num_rows` is set",
    ),
    "no divisor": (
        lambda w, x: w,
        {"microbatch_size": 4},
        "`microbatch_size` must divide .*; got 4 for 6",
    ),
    "no count": (lambda w, x: w, {"group_size": 0}, "`group_size` must be at least 1"),
    "no flag": (lambda w, x: w, {"materialize": 1}, "`materialize` must be True or"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors(case):
    fun, options, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as error:
        co.task_grad(fun, **options)(W, X)
    assert not re.search(r"<locals>|PyTreeDef|of_params", str(error.value))


def test_integer_parameters_are_an_error_that_names_them():
    with pytest.raises(ValueError, match=r"argument 0\['n'\] is an array of int32"):
        co.task_grad(lambda p, x: p["w"])({"w": W, "n": jnp.arange(3)}, X)


def test_several_losses_given_to_per_example_grad_are_told_of_this():
    for several in (lambda w, x: w, lambda w, x: {"a": w.sum(), "b": x.sum()}):
        with pytest.raises(ValueError, match=r"several losses.* `co.task_grad`"):
            co.per_example_grad(several)(W, X)
