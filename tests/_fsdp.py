"""A model whose parameters and rows are cut along a mesh, and a step of it there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import consensus_optax as co
from benchmarks._traffic import collectives

LAYERS, WIDTH, ROWS, GROUP, DEVICES = 3, 16, 8, 2, 4
MESH = jax.make_mesh(
    (DEVICES,), ("data",), (AxisType.Auto,), devices=jax.devices()[:DEVICES]
)
SPECS = {
    "layers": {
        "up": PartitionSpec(None, "data"),
        "down": PartitionSpec(None, None, "data"),
    },
    "readout": PartitionSpec("data"),
}
SHARDINGS = jax.tree.map(lambda spec: NamedSharding(MESH, spec), SPECS)
BY_ROW = NamedSharding(MESH, PartitionSpec("data"))


def loss(params, x):
    @jax.checkpoint
    def block(x, p):
        return x + jnp.tanh(x @ p["up"]) @ p["down"], None

    x, _ = jax.lax.scan(block, x, params["layers"])
    return jnp.mean(jnp.tanh(x @ params["readout"]))


def numbers(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape) / 2


PARAMS = {
    "layers": {
        "up": numbers(LAYERS, WIDTH, 2 * WIDTH),
        "down": numbers(LAYERS, 2 * WIDTH, WIDTH),
    },
    "readout": numbers(WIDTH, WIDTH),
}


def of_rows(count):
    """Examples of rows, of which row 2 cannot count, and weights."""
    x = numbers(count * GROUP, 24, WIDTH).at[2 * GROUP].set(jnp.inf)
    return x, jnp.ones(count).at[5].set(0).at[6].set(3)


X, WEIGHTS = of_rows(ROWS)


def step_of(reducer, face, weights=WEIGHTS, **options):
    step = co.value_and_reduced_grad(loss, face, group_size=GROUP, **options)
    return functools.partial(step, state=reducer.init(PARAMS), weights=weights)


def compiled(reducer, x=X, weights=WEIGHTS, **how):
    face = co.sharded(reducer, "data", mesh=MESH, param_specs=SPECS)
    step = jax.jit(
        step_of(reducer, face, weights, **how),
        in_shardings=(SHARDINGS, BY_ROW),
        out_shardings=(None, SHARDINGS, None),
    )
    return step.lower(PARAMS, x).compile()


def check(reducer, tolerance, x=X, weights=WEIGHTS, **how):
    on_mesh = compiled(reducer, x, weights, **(how or {"hold_rows": False}))
    given = jax.device_put(PARAMS, SHARDINGS), jax.device_put(x, BY_ROW)
    value, update, state = on_mesh(*given)
    expected = step_of(reducer, reducer, weights, hold_rows=True)(PARAMS, x)
    assert int(state.num_nonfinite) == 1
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    close(value, expected[0])
    for own, other in zip(*map(jax.tree.leaves, (update, expected[1])), strict=True):
        close(own, other, atol=tolerance * np.abs(other).max())
    return on_mesh


def dealt(hlo):
    """Bytes of rows that are dealt out, by the library rather than by the compiler."""
    own = "\n".join(line for line in hlo.splitlines() if "/all_to_all" in line)
    return sum(size for kind, size in collectives(own) if kind == "all-to-all")


# Sums of 48 terms in another order, in float32; rows are of one size.
SUMS = 48 * 2.0**-23
