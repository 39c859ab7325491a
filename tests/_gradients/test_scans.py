"""Kernels inside `lax.scan` stay factored, and what cannot is as `vmap` gives it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core.primitives import add_jaxvals_p

import consensus_optax as co
from benchmarks import _scanned_workloads, _workloads
from consensus_optax._gradients.contraction import unfinished
from tests._models import array, assert_close, assert_rows, square
from tests._recurrent_models import RECURRENT, lstm, too_long
from tests._scanned_models import SCANNED, layers, transformer

MODELS = SCANNED | RECURRENT

pytestmark = pytest.mark.standard_promotion  # models mix types as their libraries do


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_those_of_vmap_of_grad(name):
    assert_rows(MODELS[name](), 5e-6)  # float32 rounding through all layers


def test_kernels_of_layers_have_an_axis_of_layers():
    model = transformer()
    rows = jax.eval_shape(co.per_example_grad(model.loss), model.params, model.batch)
    up = rows["up"]
    assert (up.left.shape, up.right.shape) == ((4, 3, 3, 16), (4, 3, 3, 64))
    assert (up.num_layers, up.sides, up.shape) == (3, (3, 16, 64), (4, 3, 16, 64))
    assert not co.is_outer_product(rows["scale"])


def test_kernels_used_in_every_step_have_more_terms():
    model = lstm()
    rows = jax.eval_shape(co.per_example_grad(model.loss), model.params, model.batch)
    assert rows["h"].num_layers is None
    assert rows["h"].sides == (3, 24, 96)


def test_explain_says_what_is_factored_and_why_not(capsys):
    for name in ("layers", "too_long", "not_understood", "with_effects"):
        model = MODELS[name]()
        co.explain(model.loss, model.params, model.batch)
    said = capsys.readouterr().out
    for line in (
        "['kernel']  (3, 16, 16)  factored: 3 layers of 1 x (16 + 16), saves 10.5 KiB",
        "['narrow']  (4, 4)    array: ends in dot_general in scan, which is no larger",
        "['read']     (16, 16)     array: ends in scan\n",
        "['bounded']  (3, 16, 16)  array: ends in min in scan",
        "['up']     (3, 16, 64)       array: ends in scan with effects",
    ):
        assert line in said


def primitives(jaxpr):
    """Names of all operations, those within others included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


def count(name, function, *args):
    eqns = primitives(jax.make_jaxpr(function)(*args).jaxpr)
    return sum(eqn.primitive.name == name for eqn in eqns)


@pytest.mark.parametrize("make", [transformer, lstm, too_long])
def test_nothing_is_computed_twice(make):
    """As many scans and sines as in the plain step, and no product that is kept."""
    model = make()
    one = lambda p, x: jax.grad(model.loss)(p, jax.tree.map(lambda a: a[None], x))
    plain = jax.vmap(one, (None, 0))
    lazy = co.per_example_grad(model.loss)
    given = model.params, model.batch
    for name in ("scan", "sin", "tanh", "exp"):
        assert count(name, lazy, *given) == count(name, plain, *given)
    fewer = sum(name in str(model.factored) for name in model.params)
    dots = count("dot_general", plain, *given) - count("dot_general", lazy, *given)
    assert dots >= fewer


def sums(start, reads):
    """A gradient that a scan adds up, written by hand; ``reads`` what it adds to."""

    def value_and_grad(a, d):
        def step(carry, now):
            total, seen = carry
            product = lax.dot_general(*now, (((0,), (0,)), ((), ())))
            seen = seen + total[0, 0] if reads else seen
            return (add_jaxvals_p.bind(total, product), seen), None

        (total, seen), _ = lax.scan(step, (start(), 0.0), (a, d))
        return seen, total

    return value_and_grad


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("from_zeros", [False, True])
def test_only_sums_from_zeros_that_are_not_read_are_factored(from_zeros, reads):
    start = lambda: jnp.zeros((16, 8)) if from_zeros else array(0, 16, 8)
    function, given = sums(start, reads), (array(1, 4, 3, 1, 16), array(2, 4, 3, 1, 8))
    value, rows = unfinished(function, (0, 0), *given)
    assert co.is_outer_product(rows) == (from_zeros and not reads)
    expected = jax.vmap(function)(*given)
    assert_close(value, expected[0], 2e-6)  # float32 rounding, as below
    assert_close(co.materialize(rows), expected[1], 2e-6)


def test_more_products_may_be_stacked_than_there_are_operands():
    def value_and_grad(x):
        product = lambda y: lax.dot_general(y, x, (((0,), (0,)), ((), ())))
        turn = lambda carry, _: (carry, [product(k * x) for k in (1.0, 2.0, 3.0)])
        return x.sum(), lax.scan(turn, 0.0, None, length=2)[1]

    x = array(0, 4, 1, 16)
    _, rows = unfinished(value_and_grad, (0,), x)
    assert all(map(co.is_outer_product, rows))
    for got, wanted in zip(rows, jax.vmap(value_and_grad)(x)[1], strict=True):
        assert_close(got.materialize(), wanted, 2e-6)  # float32 rounding


@pytest.mark.parametrize("make", [layers, lstm])
def test_rows_inside_shard_map(make):
    """Where types say what varies over devices, loops are rebuilt with their types."""
    model = make()
    mesh = jax.make_mesh((2,), ("data",))
    reducer, specs = co.mean(), jax.sharding.PartitionSpec("data")
    rows = co.per_example_grad(model.loss)

    def update(params, batch):
        across = co.sharded(reducer, "data")
        return across.update(rows(params, batch), reducer.init(params), params)[0]

    whole = jax.sharding.PartitionSpec()
    mapped = jax.shard_map(update, mesh=mesh, in_specs=(whole, specs), out_specs=whole)
    batch = jax.device_put(model.batch, jax.NamedSharding(mesh, specs))
    got = jax.jit(mapped)(model.params, batch)
    wanted = jax.grad(model.loss)(model.params, model.batch)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert_close(x, y, 5e-6)  # a sum in another order


@pytest.mark.slow
def test_the_benchmark_transformer_is_the_same_with_scanned_layers():
    plain = _workloads.workload("transformer", smoke=True)
    scanned = _scanned_workloads.workload("transformer", smoke=True)
    losses = lambda *works: [work.loss(work.params, work.batch) for work in works]
    with jax.numpy_rank_promotion("allow"):  # biases
        assert_close(*losses(plain, scanned), 1e-6)  # float32 rounding
        rows = co.per_example_grad(scanned.loss)
        rows = jax.eval_shape(rows, scanned.params, scanned.batch)
    assert co.is_outer_product(rows["layers"]["up"]["kernel"])


def deep(num_rows=32, length=1, depth=8, width=256):
    """A perceptron of many layers, its parameters and batch as shapes."""

    def loss(p, x):
        layer = lambda x, w: (jnp.tanh(x @ w), None)
        return square(lax.scan(layer, x, p)[0])

    params = jax.ShapeDtypeStruct((depth, width, width), jnp.float32)
    batch = jax.ShapeDtypeStruct((num_rows, length, width), jnp.float32)
    return loss, params, batch


DEEP = {
    "mean": co.mean,
    "minmod": co.sign_consensus,
    "quorum": lambda: co.sign_consensus(0.8),
    "cosines": co.cosine_filter,
    "distances": lambda: co.krum(3),  # multiplies rows out, a layer at a time
    "columns": co.median,
}


@pytest.mark.parametrize("name", DEEP)
def test_rows_of_a_deep_scan_are_never_in_memory(name):
    loss, params, batch = deep(length=2)
    reducer = DEEP[name]()

    def step(params, batch):
        rows = co.per_example_grad(loss)(params, batch)
        return reducer.update(rows, reducer.init(params), params)[0]

    memory = jax.jit(step).lower(params, batch).compile().memory_analysis()
    stack = 4 * batch.shape[0] * np.prod(params.shape)
    assert memory.temp_size_in_bytes < 0.3 * stack
