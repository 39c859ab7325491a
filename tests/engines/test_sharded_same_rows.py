"""`jax.grad` inside of `shard_map` gives every device the total, silently."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import consensus_optax as co

PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)


def loss(params, x):
    return jnp.mean((x @ params["w"] + params["b"][None]) ** 2)


def update_of(rows_of, num_devices=2, check_vma=True):
    mesh = jax.make_mesh((num_devices,), ("data",), axis_types=(AxisType.Auto,))
    rule = co.sharded(co.mean(), "data")

    def step(params, x):
        return rule.update(rows_of(params, x), rule.init(params), params)[0]

    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=P(),
        check_vma=check_vma,
    )
    return jax.jit(mapped)(PARAMS, X)


def plain(params, x):
    return jax.tree.map(lambda leaf: leaf[None], jax.grad(loss)(params, x))


def as_meant(params, x):
    rows = plain(params, x)
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, "data", to="varying"), rows)


def close(got, factor):
    assert_close = lambda x, y: np.testing.assert_allclose(x, factor * y, rtol=1e-5)
    jax.tree.map(assert_close, got, jax.grad(loss)(PARAMS, X))  # sums of 8


def test_rows_that_are_the_total_are_an_error():
    with pytest.raises(
        ValueError, match=r"'data' has the same rows.*`co\.worker_grad`"
    ):
        update_of(plain)


def test_what_is_right_is_not():
    close(update_of(co.worker_grad(loss, "data")), 1)
    close(update_of(co.per_example_grad(loss)), 1)
    close(update_of(plain, check_vma=False), 1)  # nothing is summed there
    close(update_of(plain, num_devices=1), 1)
    close(update_of(as_meant), 2)  # twice the gradient of the mean of two means
