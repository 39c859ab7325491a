"""What the stack of rows checks: trees that differ, parameters, weights, debugging."""

import dataclasses
import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

import consensus_optax as co
from consensus_optax._rows.finite import finite_rows
from consensus_optax._rows.stack import as_stack, checked_weights
from consensus_optax._rules.kinds import After, Among
from tests._stacks import ALL, NAMES, B, params, tree
from tests.zoo import FACTORIES, KINDS

V = jnp.ones(3)


class Point(NamedTuple):
    """A tree of two leaves."""

    x: object
    y: object


@struct.dataclass
class Tagged:
    """A tree with a static field."""

    x: object
    tag: str = struct.field(pytree_node=False, default="a")


DIFFERENT = {
    "missing": ({"a": V}, {"a": V, "b": V}, r"the rows have no `\['b'\]`"),
    "extra": ({"a": V, "b": V}, {"a": V}, r"rows have `\['b'\]`, which `params` have"),
    "deep": (
        {"a": {"b": [V, {"c": V}]}},
        {"a": {"b": [V, {"d": V}]}},
        r"the rows have `\['a'\]\['b'\]\[1\]\['c'\]`, which `params` have not",
    ),
    "longer": ([V, V], [V], r"the rows have `\[1\]`, which `params` have not"),
    "type": ({"a": [V]}, {"a": (V,)}, r"at `\['a'\]` the rows have a list, `params` a"),
    "named": (Point(V, V), (V, V), "at the root the rows have a Point, `params` a tup"),
    "below": ({"a": {"b": V}}, {"a": V}, r"at `\['a'\]` the rows have a dict, `.* a l"),
    "above": ({"a": V}, {"a": {"b": V}}, r"at `\['a'\]` the rows have a leaf, `.* a d"),
    "none": (
        {"a": None},
        {"a": V},
        r"at `\['a'\]` the rows have None, `params` a leaf",
    ),
    "no param": ({"a": V}, {"a": None}, r"the rows have a leaf, `params` None"),
    "masked": ({"a": V}, {"a": optax.MaskedNode()}, "a leaf, `params` a MaskedNode"),
    "static": (Tagged(V), Tagged(V, "b"), "at the root they are a Tagged of different"),
}


def rows_like(leaves):
    return jax.tree.map(lambda leaf: jnp.ones((B, *leaf.shape)), leaves)


@pytest.mark.parametrize("case", DIFFERENT)
def test_trees_that_differ_are_told_by_their_first_difference(case):
    ours, theirs, message = DIFFERENT[case]
    with pytest.raises(ValueError, match=message) as error:
        as_stack(rows_like(ours), theirs)
    said = str(error.value)
    assert "must be trees of one structure" in said
    assert not re.search(r"PyTreeDef|<locals>|\*", said)
    with pytest.raises(ValueError, match=message.replace("rows", "updates")):
        co.skip_if_empty(optax.sgd(1.0)).update(ours, None, theirs)


def test_outer_products_stand_for_leaves():
    loss = lambda p, x: jnp.mean((x @ p["w"]) ** 2)
    rows = co.per_example_grad(loss)({"w": jnp.ones((16, 16))}, jnp.ones((B, 16)))
    assert co.is_outer_product(rows["w"])
    with pytest.raises(ValueError, match=r"rows have no `\['b'\]`") as error:
        as_stack(rows, {"b": V, "w": jnp.ones((16, 16))})
    assert "left" not in str(error.value)


def test_parameters_may_be_numbers_of_python():
    parameters = {"w": 1.0, "n": 3, "on": True}
    rows = {
        "w": jnp.arange(4.0),
        "n": jnp.zeros(4, jnp.int32),
        "on": np.zeros(4, jax.dtypes.float0),
    }
    rule = co.mean()
    inner = co.ema_agreement(), co.median_of_three_steps(), optax.sgd(1.0)
    momentum = co.row_momentum(0.0, num_rows=4)
    tx = optax.chain(momentum, rule, co.skip_if_empty(optax.chain(*inner)))
    one = {"w": 1.0}
    updates, _ = tx.update({"w": rows["w"]}, tx.init(one), one)
    assert updates["w"] == -1.5
    update, _ = rule.update(rows, rule.init(parameters), parameters)
    assert (update["w"].dtype, update["n"].dtype) == (jnp.float32, jnp.int32)


def test_what_is_no_parameter_is_named():
    parameters = {"w": V, "activation": jnp.tanh}
    says = r"must be arrays or numbers; leaf `\['activation'\]` is a .*partition"
    with pytest.raises(ValueError, match=says):
        co.mean().init(parameters)
    with pytest.raises(ValueError, match=says):
        as_stack(rows_like({"w": V, "activation": V}), parameters)


COUNTS = np.array([2**31, 2**33, 2**40, 1])


@pytest.mark.parametrize("kind", [np.asarray, list, np.float64, np.uint64])
def test_counts_above_two_to_the_31_are_no_less(kind):
    """As an int32 the first is negative, and the next two are 0."""
    rows = jnp.eye(4)
    rule = co.mean()
    update, state = rule.update(
        rows, rule.init(jnp.ones(4)), jnp.ones(4), weights=kind(COUNTS)
    )
    # Sums and quotients of a few float32.
    np.testing.assert_allclose(update, COUNTS / COUNTS.sum(), rtol=1e-6)
    assert (int(state.num_present), int(state.num_nonfinite)) == (4, 0)
    momentum = co.row_momentum(0.0, num_rows=4)
    moved, _ = momentum.update(
        rows, momentum.init(jnp.ones(4)), jnp.ones(4), weights=kind(COUNTS)
    )
    np.testing.assert_array_equal(moved, rows)
    lengths = co.diagnostics.gradient_variance(rows, weights=kind(COUNTS))
    share = COUNTS / COUNTS.sum()
    assert (np.asarray(lengths)[:3] > 0.5 * (share - share**2)[:3]).all()


def test_any_numbers_are_weights():
    for weights in ([True, False], np.float16([1, 0]), jnp.bfloat16([1, 0]), (1, 0.0)):
        assert checked_weights(weights, 2, jnp.float32).tolist() == [1, 0]
    traced = jax.jit(lambda x: checked_weights([x, 0], 2, jnp.float32))(1)
    assert traced.tolist() == [1, 0]
    half = checked_weights([1e5, 1], 2, jnp.float16)  # the first one is inf in it
    assert half.tolist() == [-1, 1]


NO_WEIGHTS = {"negative": -1.0, "nan": np.nan, "inf": np.inf, "huge": 3e38}


@pytest.mark.parametrize("case", NO_WEIGHTS)
def test_what_is_no_weight_is_an_error_or_counted(case):
    """An error where it is known, and where it is traced the row is absent."""
    wrong = np.float32([1, 2, NO_WEIGHTS[case], 1])
    rows, parameters = jnp.eye(4), jnp.ones(4)
    rule = co.mean()
    update = functools.partial(rule.update, rows, rule.init(parameters), parameters)
    for weights in (wrong, wrong.tolist(), jnp.asarray(wrong)):
        with pytest.raises(ValueError, match=r"in \[0, 1e\+16\]; got .* for row 2"):
            update(weights=weights)
    traced, state = jax.jit(lambda weights: update(weights=weights))(wrong)
    np.testing.assert_array_equal(traced, [0.25, 0.5, 0, 0.25])
    assert (int(state.num_present), int(state.num_nonfinite)) == (3, 1)


@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_what_is_no_weight_is_so_in_microbatches(microbatch_size):
    loss = lambda w, x: jnp.mean(x @ w)
    rule, w, x = co.mean(), jnp.ones(4), jnp.eye(4)
    reduced = co.value_and_reduced_grad(loss, rule, microbatch_size=microbatch_size)
    step = lambda weights: reduced(w, x, state=rule.init(w), weights=weights)
    wrong = jnp.array([1.0, 2.0, -3.0, jnp.nan])
    with pytest.raises(ValueError, match="got -3 for row 2"):
        step(wrong)
    value, update, state = jax.jit(step)(wrong)
    # A third and two thirds, rounded.
    np.testing.assert_allclose(update, [1 / 3, 2 / 3, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(value, 1, rtol=1e-6)
    assert (int(state.num_present), int(state.num_nonfinite)) == (2, 2)


def test_weights_that_are_no_numbers():
    with pytest.raises(ValueError, match="`weights` must be numbers, one for every"):
        checked_weights(["a", "b"], 2, jnp.float32)


MISSPELT = {
    "weight": "weights",
    "wieghts": "weights",
    "Weights": "weights",
    "value_s": "values",
    "span_hesian": "span_hessian",
}


@pytest.mark.parametrize("word", MISSPELT)
def test_misspelt_keywords_are_errors(word):
    rule, mesh = co.mean(), jax.make_mesh((1,), ("data",))
    for update in (rule.update, co.sharded(rule, "data", mesh=mesh).update):
        with pytest.raises(ValueError, match=f"`{word}` .* mean `{MISSPELT[word]}`"):
            update(jnp.ones((2, 3)), rule.init(V), V, **{word: jnp.ones(2)})


def test_other_keywords_pass():
    rule = co.mean()
    words = {"value": 1.0, "grad": V, "value_fn": jnp.sum, "loss": 1.0, "lr": 1.0}
    rule.update(jnp.ones((2, 3)), rule.init(V), V, **words)


# Eagerly a rule takes seconds, to compile single operations. A selection, then a fold,
# and a mixing, then a weighting, stand for all, and CI asks for the others.
QUICK = [*{type(row.make().rule): row for row in KINDS}.values()]
QUICK = [row for row in QUICK if isinstance(row.make().rule, Among | After)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=str(row), marks=() if row in QUICK else marks)
        for marks in [pytest.mark.whole_zoo]
        for row in FACTORIES
    ],
)
def test_a_broken_row_makes_no_nan_that_stops_a_debugger(row):
    """Eagerly, where JAX looks at every operation; the same update as without."""
    rows = ALL.rows[NAMES.index("agreeing")].copy()
    rows[1, 3], rows[1, 4], rows[4, 0] = np.inf, -np.inf, np.nan
    rule, parameters = row.make(), params()
    broken = tree(rows)
    update = lambda: rule.update(broken, rule.init(parameters), parameters)[0]
    with jax.debug_nans(True):
        debugged = update()
    for got, wanted in zip(*map(jax.tree.leaves, (debugged, update())), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_broken_factors_make_no_nan_that_stops_a_debugger():
    loss = lambda w, x: jnp.mean(jnp.tanh(x @ w))
    w, rule = jnp.ones((16, 16)), co.mean()
    rows = co.per_example_grad(loss)(w, jnp.ones((B, 16)) / 16)
    left = rows.left.at[1, 0, :2].set(jnp.array([jnp.inf, -jnp.inf]))
    rows = dataclasses.replace(rows, left=left)
    with jax.debug_nans(True):
        update, state = rule.update(rows, rule.init(w), w)
    assert jnp.isfinite(update).all()
    assert jnp.any(update != 0)
    assert int(state.num_nonfinite) == 1


@pytest.mark.parametrize("debugs", [False, True])
def test_rows_that_are_finite(debugs):
    edge = float(jnp.finfo(jnp.float32).max)
    rows = jnp.array([[edge, edge], [jnp.inf, 0], [-jnp.inf, jnp.inf], [-edge, edge]])
    with jax.debug_nans(debugs):
        assert finite_rows([rows], jnp.float32).tolist() == [True, False, False, True]
