"""Reducers and row transforms of rows along explicit mesh axes, as on one device."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from consensus_optax.diagnostics._gramian import gramian
from tests._models import array, assert_close, square
from tests.zoo import EVERY_FACTORY

pytestmark = pytest.mark.slow

PARAMS = {"w": array(0, 16, 32), "b": array(1, 32), "v": array(2, 32, 8)}
# w is cut along both axes, v along that of the rows; one column of w stays together
CUTS = {"w": P("data", "model"), "b": P("model"), "v": P("data", None)}
BATCH = array(3, 8, 16)


def loss(p, x):
    return square(jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"])


def steps(rule):
    """The second of two steps of a rule, with all that it may read, traced once."""
    rows, values = co.per_example_grad(loss), jnp.arange(8, dtype=jnp.float32)

    def run(params, batch):
        def step(carried, _):
            made = rows(params, batch)
            return rule.update(made, carried[1], params, values=values), None

        start = jax.tree.map(jnp.zeros_like, params), rule.init(params)
        return jax.lax.scan(step, start, length=2)[0][0]

    return jax.jit(run)


def on_mesh():
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    assert set(mesh.axis_types) == {AxisType.Explicit}  # JAX's default
    put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    return jax.tree.map(put, PARAMS, CUTS), put(BATCH, P("data"))


def assert_as_on_one_device(rule, tolerance):
    params, batch = on_mesh()
    update, expected = steps(rule)(params, batch), steps(rule)(PARAMS, BATCH)
    for key, given in update.items():
        assert given.sharding == params[key].sharding
        assert_close(given, expected[key], tolerance)


@pytest.mark.parametrize(
    "make",
    [
        co.mean,
        co.sign_consensus,
        co.previous_update_filter,
        lambda: optax.chain(co.clip_examples(0.1), co.median()),
        lambda: optax.chain(co.row_momentum(0.9, num_rows=8), co.mean()),
    ],
    ids=[
        "mean",
        "sign_consensus",
        "previous_update_filter",
        "clipped median",
        "momentum",
    ],
)
def test_update_is_that_of_one_device_and_lies_as_the_parameters(make):
    assert_as_on_one_device(make(), 1e-5)  # sums over parts of an axis


@pytest.mark.whole_zoo
@pytest.mark.parametrize("row", EVERY_FACTORY)
def test_every_rule_is_that_of_one_device(row):
    assert_as_on_one_device(row.make(8), 1e-4)  # solvers go on from rounded products


def test_gramian_of_rows_on_a_mesh():
    inner = jax.jit(lambda *args: gramian(co.per_example_grad(loss)(*args)))
    assert_close(inner(*on_mesh()), inner(PARAMS, BATCH), 1e-5)  # sums in parts
