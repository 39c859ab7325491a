"""Each worker's own gradient, where jax would sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from tests.engines.test_sharded import mesh_of


def loss(w, x):
    return jnp.mean((x @ w) ** 2)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("names", [("data",), ("replica", "data")])
def test_rows_are_the_gradients_of_each_worker(check_vma, names):
    mesh = mesh_of(*((4,) if len(names) == 1 else (2, 2)), names=names)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    w = jnp.array([1.0, -1.0, 0.5])
    rows_of = co.worker_grad(loss, names)
    run = jax.shard_map(
        rows_of,
        mesh=mesh,
        in_specs=(P(), P(names)),
        out_specs=P(names),
        check_vma=check_vma,
    )
    wanted = np.stack([jax.grad(loss)(w, part) for part in jnp.split(x, 4)])
    np.testing.assert_allclose(jax.jit(run)(w, x), wanted, rtol=1e-6)


def test_value_auxiliary_output_and_several_arguments():
    def fun(a, b, x):
        value = jnp.mean(a * x) + jnp.mean(b * x * x)
        return value, {"largest": x.max()}

    value_and_rows = co.worker_value_and_grad(fun, "data", (0, 1), has_aux=True)
    rows_of = co.worker_grad(fun, "data", (0, 1), has_aux=True)

    def run(a, b, x):
        (value, aux), rows = value_and_rows(a, b, x)
        again, _ = rows_of(a, b, x)
        return value[None], aux["largest"][None], rows, again

    mapped = jax.shard_map(
        run, mesh=mesh_of(2), in_specs=(P(), P(), P("data")), out_specs=P("data")
    )
    value, largest, rows, again = jax.jit(mapped)(
        jnp.array(2.0), jnp.array(1.0), jnp.array([1.0, 3.0, 0.0, 2.0])
    )
    assert value.tolist() == [9.0, 4.0]
    assert largest.tolist() == [3.0, 2.0]
    assert [leaf.tolist() for leaf in rows] == [[2.0, 1.0], [5.0, 2.0]]
    assert [leaf.tolist() for leaf in again] == [[2.0, 1.0], [5.0, 2.0]]
