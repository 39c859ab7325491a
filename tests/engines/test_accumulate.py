"""The rows of several steps are one stack, whatever the rule keeps of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from consensus_optax._rules.kinds import Fold
from tests._laws import close
from tests._stacks import ALL, NAMES, B, matrix, one_by_one, params, tree
from tests._stacks import P as P_ALL
from tests.zoo import FACTORIES

K = 3
SPLIT = B // K
PARAMS = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}


def both_ways(reducer):
    """(updates of K steps, state), and what the reducer makes of all rows at once."""
    parameters = params()
    like = jax.eval_shape(lambda: tree(np.zeros((SPLIT, P_ALL))))
    waits = co.accumulate(reducer, K, like=like)

    def run(rows, weights):
        values = jnp.arange(B, 0, -1.0)

        def step(state, batch):
            own, counts, losses = batch
            extra = {"weights": counts, "values": losses}
            return waits.update(own, state, parameters, **extra)[::-1]

        apart = lambda x: x.reshape(K, SPLIT, *x.shape[1:])
        batches = jax.tree.map(apart, (rows, weights, values))
        state, updates = jax.lax.scan(step, waits.init(parameters), batches)
        wanted = reducer.update(
            rows, reducer.init(parameters), parameters, weights=weights, values=values
        )
        return updates, state, wanted

    return jax.jit(one_by_one(run))


WHOLE = [(), pytest.mark.whole_zoo]
NOW = {"sign_consensus()", "krum(num_byzantine=0)", "median()"}  # one of each kind
ROWS = [
    pytest.param(row, id=str(row), marks=WHOLE[str(row) not in NOW])
    for row in FACTORIES
]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_equals_the_reducer_on_all_rows(row):
    program = both_ways(row.make())
    updates, state, (wanted, reducer_state) = program(
        tree(ALL.rows), jnp.asarray(ALL.weights, jnp.float32)
    )
    each = matrix(updates, batch_ndim=2)  # (S, K, P)
    last = each[:, -1]
    assert not np.any(each[:, :-1])
    wanted = matrix(wanted, batch_ndim=1)
    known = np.array([name not in row.rounding for name in NAMES])[:, None]
    close(np.where(known, last, 0), np.where(known, wanted, 0), row.tolerance)
    np.testing.assert_array_equal(state.num_held, 0)
    counts = lambda state: (
        state.step,
        state.num_present,
        state.num_nonfinite,
        state.consensus_ready,
        state.num_accepted,
    )
    got = counts(state.reducer_state)
    jax.tree.map(np.testing.assert_array_equal, got, counts(reducer_state))
    is_fold = isinstance(row.make().rule, Fold)
    held = jax.tree.leaves(state.batches["rows"])
    assert bool(held) != is_fold  # a fold keeps no rows


def rows_of(batch, scale=1.0):
    loss = lambda p, x: jnp.mean(jnp.tanh(x @ p["w"] + p["b"][None]) ** 2) * scale
    return co.per_example_grad(loss)(jax.tree.map(lambda p: p + 0.5, PARAMS), batch)


def x_of(num, seed=0):
    draw = np.random.default_rng(seed).normal(size=(num, 3))
    return jnp.asarray(draw, jnp.float32)


def close_to(got, wanted):
    same = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    jax.tree.map(same, got, wanted)  # sums of eight in another order


RULES = {
    "fold": co.sign_consensus(quorum=0.7),
    "weighting": co.krum(1),
    "columns": co.median(),
    "chain": optax.chain(co.clip_examples(0.1), co.mean()),
}


@pytest.mark.whole_zoo
@pytest.mark.parametrize("name", RULES)
def test_factored_rows_cycle_after_cycle_in_a_scan(name):
    """Two cycles of two batches of four; rows stay factored; shapes are fixed."""
    rule, x = RULES[name], x_of(16)
    rows = rows_of(x[:4])
    tx = co.accumulate(rule, 2, like=jax.eval_shape(rows_of, x[:4]))
    state = tx.init(PARAMS)

    step = lambda state, x: tx.update(rows_of(x), state, PARAMS)[::-1]
    run = jax.jit(lambda state, x: jax.lax.scan(step, state, x))
    end, updates = run(state, x.reshape(4, 4, 3))
    assert jax.tree.structure(end) == jax.tree.structure(state)
    held = [leaf.shape for leaf in jax.tree.leaves(end.batches["rows"])]
    factored = co.is_outer_product(rows["w"])
    assert factored
    wanted = [] if name == "fold" else [(2, 4, 2), (2, 4, 1, 3), (2, 4, 1, 2)]
    assert held == wanted
    of_rule = rule.init(PARAMS)
    for i in range(2):
        whole = rows_of(x[8 * i : 8 * i + 8])
        expected, of_rule = rule.update(whole, of_rule, PARAMS)
        close_to(jax.tree.map(lambda u, i=i: u[2 * i + 1], updates), expected)
        assert not any(jnp.any(leaf[2 * i]) for leaf in jax.tree.leaves(updates))
    lazy = co.accumulate(rule, 2)
    state, step = lazy.init(PARAMS), jax.jit(lazy.update)
    for i in range(4):
        update, state = step(rows_of(x[4 * i : 4 * i + 4]), state, PARAMS)
    close_to(update, expected)
    same = jax.tree.structure(co.metrics(state)), jax.tree.structure(co.metrics(end))
    assert same[0] == same[1]


@pytest.mark.whole_zoo
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("sharded", [True, False])
@pytest.mark.parametrize("name", ["fold", "filter"])
def test_on_a_mesh(name, sharded, kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    rule = co.sign_consensus(0.7) if name == "fold" else co.cosine_filter(1.2)
    tx = co.accumulate(co.sharded(rule, "data", mesh=mesh) if sharded else rule, 2)
    x = x_of(8)
    place = lambda x: jax.device_put(x, NamedSharding(mesh, P("data")))
    state = tx.init(PARAMS)
    step = jax.jit(lambda x, state: tx.update(rows_of(x), state, PARAMS))
    with jax.set_mesh(mesh):
        for i in range(2):
            update, state = step(place(x[4 * i : 4 * i + 4]), state)
    wanted, _ = rule.update(rows_of(x), rule.init(PARAMS), PARAMS)
    close_to(update, wanted)


@pytest.mark.whole_zoo
def test_inside_shard_map():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    tx, x = co.accumulate(co.sharded(co.median(), "data"), 2), x_of(8)

    def train(x):
        state = tx.init(PARAMS)
        for i in range(2):
            rows = rows_of(x[2 * i : 2 * i + 2])
            update, state = tx.update(rows, state, PARAMS)
        return update

    mapped = jax.shard_map(train, mesh=mesh, in_specs=P("data"), out_specs=P())
    wanted, _ = co.median().update(rows_of(x), co.median().init(PARAMS), PARAMS)
    close_to(jax.jit(mapped)(x), wanted)


def test_leaves_without_a_gradient_and_a_skipping_optimizer():
    parameters = {"w": jnp.ones(2), "n": jnp.arange(3)}
    rows = {
        "w": jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, -6.0]]),
        "n": np.zeros((3, 3), jax.dtypes.float0),
    }
    tx = co.accumulate(co.median(), 2)
    state, skips = tx.init(parameters), co.skip_if_empty(optax.sgd(1.0))
    skipped = skips.init(parameters["w"])
    for i in range(4):
        update, state = tx.update(rows, state, parameters)
        assert bool(jnp.any(update["w"])) == bool(i % 2)
        assert update["n"].shape == (3,)
        _, skipped = skips.update(update["w"], skipped, parameters["w"])
    assert skipped.skipped == 2
    assert co.metrics(state)["num_present"] == 6


def test_target_is_that_of_the_last_call_and_values_are_joined():
    rows, target = jnp.eye(2), jnp.array([0.0, 1.0])
    rule = co.select_toward(min_cosine=0.5)
    tx = co.accumulate(rule, 2)
    state = tx.init(target)
    for sign in (-1.0, 1.0):
        update, state = tx.update(rows, state, target, target=sign * target)
    np.testing.assert_allclose(update, target)
    tx = co.accumulate(co.keep_smallest_losses(1), 2)
    state = tx.init(target)
    for losses in ([3.0, 1.0], [2.0, 5.0]):
        values = jnp.array(losses)
        update, state = tx.update(rows, state, target, values=values)
    np.testing.assert_allclose(update, rows[1])


@pytest.mark.standard_promotion  # optax mixes its counts with floats
def test_multi_steps_after_a_reducer_is_something_else():
    rows = jnp.array([[1.0, 0, 9], [2, 5, 9], [3, 6, -7], [9, 7, 8]])[:, :2]
    parameters = jnp.zeros(2)
    average = optax.MultiSteps(optax.identity(), 2).gradient_transformation()
    for tx, wanted in (
        (co.accumulate(co.sign_consensus(), 2), [1, 0]),
        (optax.chain(co.sign_consensus(), average), [2, 3]),
    ):
        state = tx.init(parameters)
        for i in (0, 2):
            update, state = tx.update(rows[i : i + 2], state, parameters)
        np.testing.assert_allclose(update, wanted)


WRONG = {
    "reducer": (lambda: co.accumulate("mean", 2), "`reducer` must be a reducer, or"),
    "every_k": (lambda: co.accumulate(co.mean(), 0), "`every_k` must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_static_errors(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_errors_of_update():
    tx = co.accumulate(co.median(), 2)
    state = tx.init(PARAMS)
    rows = jax.tree.map(lambda p: jnp.ones((4, *p.shape)), PARAMS)
    _, state = tx.update(rows, state, PARAMS)
    fewer = jax.tree.map(lambda x: x[:3], rows)
    with pytest.raises(ValueError, match=r"one shape; got 3 rows after 4\. Pad a last"):
        tx.update(fewer, state, PARAMS)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), rows)
    with pytest.raises(ValueError, match="another dtype"):
        tx.update(half, state, PARAMS)
    with pytest.raises(ValueError, match=r"`values` must have shape \(4,\)"):
        tx.update(rows, state, PARAMS, values=jnp.ones(3))
    with pytest.raises(ValueError, match=r"`state` must be what `init\(params\)`"):
        tx.update(rows, co.median().init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="`weights` must be in"):
        tx.update(rows, state, PARAMS, weights=jnp.array([1.0, -1, 1, 1]))
    with pytest.raises(ValueError, match=r"must be \(B,\) \+ its parameter's shape"):
        tx.update(PARAMS, state, PARAMS)
    assert repr(tx) == "accumulate(median(), 2)"


def test_keywords_that_are_not_given_stop_no_debugger():
    waits, params = co.accumulate(co.median(), 2), jnp.zeros(2)
    with jax.debug_nans(True):
        update, state = waits.update(jnp.ones((3, 2)), waits.init(params), params)
        update, _ = waits.update(jnp.ones((3, 2)), state, params)
    assert update.tolist() == [1, 1]
