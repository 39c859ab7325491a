"""Weights that hang on losses alone: a forward pass, and one look at the rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import consensus_optax as co
from consensus_optax._rules.kinds import Reads, Weighting
from consensus_optax._running.reducer import reducer
from tests.engines.test_sharded import mesh_of

ROWS, WIDTH, KEPT = 6, 8, 3
PARAMS = jax.random.normal(jax.random.key(0), (2, WIDTH, WIDTH)) / 2
X = jax.random.normal(jax.random.key(1), (ROWS, 4, WIDTH))
WAYS = {
    "microbatches": {"microbatch_size": 2},
    "one left over": {"microbatch_size": 5},
    "one at a time": {"microbatch_size": 1},
    "backward": {"hold_rows": False},
}
# What a gradient is multiplied by as it is counted, for each row.
SOUND, NONE = np.ones(ROWS, np.float32), np.float32


def counting(factors):
    """A loss whose gradients are counted, and multiplied; and where they are."""
    counted = []

    def came_by(cotangent, row):
        counted.append(int(row))
        return np.asarray(cotangent * factors[int(row)], NONE)

    @jax.custom_vjp
    def tapped(value, row):
        return value

    def backward(row, cotangent):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        given = cotangent, row
        found = jax.pure_callback(came_by, shape, *given, vmap_method="sequential")
        return found, jnp.zeros_like(row)

    tapped.defvjp(lambda value, row: (value, row), backward)

    def loss(params, batch):
        x, row = batch
        y, _ = jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, params)
        return tapped(jnp.mean(y**2), row[0])

    return loss, counted


def stepped(rule, x, way, factors=SOUND, devices=1):
    """(value, update), and how often the gradient of a row was computed."""
    loss, counted = counting(factors)
    step = co.value_and_reduced_grad(loss, rule, **way)
    if devices > 1:
        step = co.value_and_reduced_grad(loss, co.sharded(rule, "data"), **way)
    rows = jnp.arange(float(len(x)))
    run = lambda x, row, state: step(PARAMS, (x, row), state=state)
    if devices > 1:
        cut, whole = PartitionSpec("data"), PartitionSpec()
        specs = {"in_specs": (cut, cut, whole), "out_specs": whole}
        run = jax.shard_map(run, mesh=mesh_of(devices), check_vma=False, **specs)
    found = jax.jit(run)(x, rows, rule.init(PARAMS))
    value, update, state = jax.block_until_ready(found)
    return (value, update, state), len(counted) / ROWS


def of_all(rule, x, factors=SOUND):
    """The same of rows that are arrays."""
    (value, update, _), _ = stepped(rule, x, {"hold_rows": True}, factors)
    return value, update


def close(got, expected):
    """Sums of rows and terms in another order."""
    atol = 16 * np.finfo(np.float32).eps * float(jnp.abs(expected).max())
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def by_loss():
    """A rule of one's own that reads losses, through a call."""

    def weigh(_, roster, state):
        losses = jnp.where(roster.present, roster.extra["values"], -jnp.inf)
        return jax.jit(jax.nn.softmax)(losses), state

    return reducer(Weighting(weigh, reads=Reads.NOTHING))


RULES = {"losses": co.keep_smallest_losses(KEPT), "own": by_loss()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RULES)
def test_gradients_are_computed_once(name, way):
    rule = RULES[name]
    (value, update, _), times = stepped(rule, X, WAYS[way])
    assert times <= (10 / 6 if way == "one left over" else 1)
    for got, expected in zip((value, update), of_all(rule, X), strict=True):
        close(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RULES)
def test_a_row_of_finite_loss_that_is_none_is_left_out(name, way):
    """It counted by its loss; another takes its place."""
    losses = [(jnp.tanh(jnp.tanh(x @ PARAMS[0]) @ PARAMS[1]) ** 2).mean() for x in X]
    heavy = (np.argmin if name == "losses" else np.argmax)(losses)
    factors = np.where(np.arange(ROWS) == int(heavy), NONE("inf"), SOUND)
    found, times = stepped(RULES[name], X, WAYS[way], factors)
    assert times > 1
    assert int(found[2].num_nonfinite) == 1
    expected = of_all(RULES[name], X, factors)[1]
    assert float(jnp.abs(expected - of_all(RULES[name], X)[1]).max()) > 1e-3
    close(found[1], expected)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_row_of_no_loss_is_left_out(way):
    x = X.at[2].set(jnp.nan)
    found, _ = stepped(RULES["losses"], x, WAYS[way])
    assert int(found[2].num_nonfinite) == 1
    close(found[1], of_all(RULES["losses"], x)[1])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["microbatches", "one at a time", "backward"])
@pytest.mark.parametrize("name", RULES)
def test_on_a_mesh_losses_are_those_of_all_rows(name, way):
    way = {**WAYS[way], **({"microbatch_size": 1} if "micro" in way else {})}
    found, times = stepped(RULES[name], X, way, devices=2)
    assert times <= 1
    close(found[1], of_all(RULES[name], X)[1])
