"""`sharded` in a `shard_map` over some axes, parameters cut along the others."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from tests._models import assert_close

pytestmark = pytest.mark.slow

ROWS = 8
KINDS = {
    "explicit": (AxisType.Explicit, AxisType.Explicit),
    "automatic": (AxisType.Auto, AxisType.Auto),
    "one of each": (AxisType.Auto, AxisType.Explicit),
}
RULES = {
    "fold": co.sign_consensus(quorum=0.8),
    "weighting": co.cosine_filter(1.0),
    "remembers": co.centered_clipping(1.0),
    "columns": co.median(),
}
CUT = P(None, "model")
WAYS = {"held": {}, "in turn": {"microbatch_size": 1}, "passes": {"hold_rows": False}}
IN_SHORT = [("explicit", "weighting", "held"), ("one of each", "fold", "in turn")]
IN_SHORT += [("explicit", "fold", "passes")]
CELLS = [
    pytest.param(*cell, marks=() if cell in IN_SHORT else pytest.mark.whole_zoo)
    for cell in itertools.product(KINDS, RULES, WAYS)
]


def loss(params, x):
    return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"]) ** 2)


def given():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 4, jnp.float32)
    return {"w": draw(16, 32), "v": draw(32, 8)}, draw(ROWS, 16)


def two_steps(rule, way, params, x):
    state, outs = rule.init(params), []
    run = co.value_and_reduced_grad(loss, rule, **WAYS[way])
    for _ in range(2):
        value, update, state = run(params, x, state=state)
        outs.append((value, update))
    return outs


@pytest.mark.parametrize(("kinds", "kind", "way"), CELLS)
def test_equals_the_reducer_in_memory(kinds, kind, way):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=KINDS[kinds])
    params, x = given()
    put = lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec))
    lying = {"w": put(params["w"], CUT), "v": put(params["v"], P())}
    rule = co.sharded(RULES[kind], "data")
    step = jax.shard_map(
        lambda *args: two_steps(rule, way, *args),
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=P(),
        axis_names={"data"},
    )
    outs = jax.jit(step)(lying, put(x, P("data")))
    expected = jax.jit(lambda *args: two_steps(RULES[kind], "held", *args))(params, x)
    # float32 sums of at most 32 terms, in another order
    jax.tree.map(lambda x, y: assert_close(x, y, 1e-5), outs, expected)
    if kinds == "explicit":  # else XLA may say where they lie
        assert outs[0][1]["w"].sharding.spec == CUT
