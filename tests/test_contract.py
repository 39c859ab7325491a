"""The contract of every reducer: shapes, dtypes, state, tracing. Values: test_laws."""

import functools
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

import consensus_optax as co
from tests._stacks import B, matrix, params
from tests.zoo import EVERY_FACTORY

every_reducer = pytest.mark.parametrize("row", EVERY_FACTORY)


def described(value):
    """Structure, shapes, dtypes and weak types: what the compiler sees of a value."""
    leaves, treedef = jax.tree.flatten(value)
    return treedef, [(x.shape, x.dtype, x.weak_type) for x in leaves]


def rows_like(parameters, num_rows, dtype=None):
    """Rows for parameters, as shapes."""
    wide = lambda p: jax.ShapeDtypeStruct((num_rows, *p.shape), dtype or p.dtype)
    return jax.tree.map(wide, parameters)


# Rows, parameters, and what the error must say. One leaf is wrong, the other right.
def _pair(rows, shape):
    good = jnp.ones((B, 2))
    return {"good": good, "k": rows}, {"good": jnp.ones(2), "k": jnp.ones(shape)}


WRONG = {
    "already averaged": (
        *_pair(jnp.ones((3, 2)), (3, 2)),
        r"`\['k'\]` is \(3, 2\).*parameter \(3, 2\).*already averaged",
    ),
    "averaged square kernel": (
        *_pair(jnp.ones((B, B)), (B, B)),
        rf"`\['k'\]` is \({B}, {B}\).*parameter \({B}, {B}\).*already averaged",
    ),
    "averaged scalar": (
        *_pair(jnp.ones(()), ()),
        r"`\['k'\]` is \(\).*parameter \(\).*already averaged",
    ),
    "out_axes=-1": (
        *_pair(jnp.ones((3, 2, B)), (3, 2)),
        rf"`\['k'\]` is \(3, 2, {B}\).*parameter \(3, 2\).*must lead",
    ),
    "two example axes": (
        *_pair(jnp.ones((2, B, 3)), (3,)),
        rf"`\['k'\]` is \(2, {B}, 3\).*parameter \(3,\).*other parameters",
    ),
    "another parameter": (
        *_pair(jnp.ones((B, 5)), (4,)),
        rf"`\['k'\]` is \({B}, 5\).*parameter \(4,\).*other parameters",
    ),
    "another B": (
        *_pair(jnp.ones((B + 1, 3)), (3,)),
        rf"`\['good'\]` has {B}, .*`\['k'\]` has {B + 1}",
    ),
    "no rows": (
        {"k": jnp.ones((0, 3))},
        {"k": jnp.ones(3)},
        r"must not be empty.*`\['k'\]` is \(0, 3\)",
    ),
    "complex": (
        *_pair(jnp.ones((B, 3), jnp.complex64), (3,)),
        r"must be real.*`\['k'\]` is complex64",
    ),
    "no params": ({"k": jnp.ones((B, 3))}, None, "needs `params`"),
    "leaf missing": (
        {"good": jnp.ones((B, 2))},
        {"good": jnp.ones(2), "k": jnp.ones(3)},
        "trees of one structure",
    ),
    "leaf too many": (
        {"good": jnp.ones((B, 2)), "k": jnp.ones((B, 3))},
        {"good": jnp.ones(2)},
        "trees of one structure",
    ),
}


@pytest.mark.parametrize("case", WRONG)
@every_reducer
def test_a_wrong_axis_is_an_error_that_names_the_leaf(row, case):
    rows, parameters, message = WRONG[case]
    reducer = row.make()
    like = jax.tree.map(lambda leaf: jnp.ones(leaf.shape[1:]), rows)
    state = jax.eval_shape(reducer.init, like)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        jax.eval_shape(reducer.update, rows, state, parameters)


@every_reducer
def test_weights_of_another_length_are_an_error(row):
    reducer, parameters = row.make(), params()
    state = jax.eval_shape(reducer.init, parameters)
    update = functools.partial(reducer.update, weights=jnp.ones(B + 1))
    with pytest.raises(ValueError, match=rf"`weights` must have shape \({B},\)"):
        jax.eval_shape(update, rows_like(parameters, B), state, parameters)


WIDTHS = {
    "bfloat16 rows": (jnp.bfloat16, jnp.float32),
    "bfloat16 parameters": (jnp.float32, jnp.bfloat16),
    "float64": (jnp.float64, jnp.float64),
    "float64 parameters": (jnp.float32, jnp.float64),
}


@pytest.mark.parametrize("width", WIDTHS)
@every_reducer
def test_no_dtype_and_no_shape_drifts(row, width):
    of_rows, of_params = WIDTHS[width]
    with jax.enable_x64(jnp.float64 in WIDTHS[width]):
        parameters, reducer = params(of_params), row.make()
        state = jax.eval_shape(reducer.init, parameters)
        rows = rows_like(parameters, B, of_rows)
        updates, new = jax.eval_shape(reducer.update, rows, state, parameters)
        plain = jax.eval_shape(lambda: jax.tree.map(jnp.zeros_like, parameters))
        assert described(updates) == described(plain)
        assert described(new) == described(state)


@every_reducer
def test_the_state_does_not_depend_on_the_number_of_rows(row):
    reducer, parameters = row.make(), params()
    state = jax.eval_shape(reducer.init, parameters)
    for num_rows in (1, 4, 17):
        trace = functools.partial(
            jax.eval_shape,
            reducer.update,
            rows_like(parameters, num_rows),
            state,
            parameters,
        )
        if row.remembers_rows:  # documented: a clear error, never a silent mix-up
            with pytest.raises(ValueError, match=f"`num_rows` must .*; got {B}"):
                trace()
        elif num_rows < row.least_rows:
            with pytest.raises(ValueError, match=r"rows are needed; got \d+"):
                trace()
        else:
            assert described(trace()[1]) == described(state)


@every_reducer
def test_extra_arguments_change_nothing_and_there_are_no_side_effects(row):
    reducer, parameters = row.make(), params()
    state = jax.eval_shape(reducer.init, parameters)
    given = rows_like(parameters, B), state, parameters
    plain = jax.make_jaxpr(reducer.update)(*given)
    extra = {"value": 1.0, "value_fn": len, "unknown": "anything"}
    with_extra = jax.make_jaxpr(functools.partial(reducer.update, **extra))(*given)
    assert str(with_extra) == str(plain)
    assert not plain.effects


@every_reducer
def test_traces_in_scan_and_in_shard_map(row):
    reducer, parameters = row.make(), params()
    state = jax.eval_shape(reducer.init, parameters)
    rows = rows_like(parameters, B)

    def steps(state, many):
        def body(state, rows):
            return reducer.update(rows, state, parameters)[::-1]

        return jax.lax.scan(body, state, many)

    many = rows_like(rows, 3)
    new, updates = jax.eval_shape(steps, state, many)
    assert described(new) == described(state)
    assert described(updates) == described(rows_like(parameters, 3))
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    everywhere, apart = PartitionSpec(), PartitionSpec("data")

    def of_all(rows, state, parameters):
        return reducer.update(rows, state, parameters)[1]

    def of_own(rows, state, parameters):
        device = jax.lax.axis_index("data").astype(jnp.float32)
        rows = jax.tree.map(lambda leaf: leaf + device, rows)
        return jax.tree.map(lambda leaf: leaf[None], of_all(rows, state, parameters))

    for fun, out_specs in ((of_all, everywhere), (of_own, apart)):
        mapped = jax.shard_map(fun, mesh=mesh, in_specs=everywhere, out_specs=out_specs)
        new = jax.eval_shape(mapped, rows, state, parameters)
        wanted = state if out_specs is everywhere else rows_like(state, 2)
        assert described(new) == described(wanted)


@pytest.mark.standard_promotion
@every_reducer
def test_one_trace_donated_buffers_and_a_standstill_without_rows(row):
    tx = optax.chain(row.make(), co.skip_if_empty(optax.adamw(0.1)))
    traces = 0

    def step(parameters, state, rows, weights):
        nonlocal traces
        traces += 1
        updates, state = tx.update(rows, state, parameters, weights=weights)
        return optax.apply_updates(parameters, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1))
    parameters = {"kernel": jnp.ones((3, 3)), "scale": jnp.ones(())}
    # Copies, since what is donated is gone; were a state to hold on to parameters,
    # one buffer would be donated twice, which is an error.
    state = tx.init(jax.tree.map(jnp.copy, parameters))
    rows = {"kernel": jnp.ones((B, 3, 3)), "scale": jnp.arange(B) + 1.0}
    some = jnp.ones(B)
    seen = []
    for weights in (some, 0 * some, some, some):
        donated = jax.tree.leaves((parameters, state[1].inner))
        parameters, state = compiled(parameters, state, rows, weights)
        assert all(x.is_deleted() for x in donated)
        seen.append(
            (matrix(parameters), matrix(state[1].inner), state[0].consensus_ready)
        )
    assert traces == 1
    assert [bool(ready) for _, _, ready in seen] == [True, False, True, True]
    assert (seen[0][0] == seen[1][0]).all()
    assert (seen[0][1] == seen[1][1]).all()
    assert (seen[1][0] != seen[2][0]).any()
    assert state[1].skipped == 1
    assert optax.tree.get(state[1].inner, "count") == 3
    assert optax.tree.get(state, "step") == 4
