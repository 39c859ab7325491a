"""Reducers inside optax: schedules, injected thresholds, and every combinator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.experimental import aggregating

import consensus_optax as co
from tests._laws import close
from tests._stacks import STACKS, B, matrix
from tests.zoo import EVERY_FACTORY, FACTORIES

pytestmark = pytest.mark.standard_promotion  # optax mixes its counts with floats

every_reducer = pytest.mark.parametrize("row", EVERY_FACTORY)
with_thresholds = pytest.mark.parametrize(
    "row", [row for row in FACTORIES if row.thresholds], ids=str
)
# One of every kind and state: a fold, a weighting, with memory, in composition.
one_of_each = pytest.mark.parametrize(
    "make",
    [
        co.mean,
        co.sign_consensus,
        co.cosine_filter,
        lambda: co.subspace_weighting(momentum=0.5, num_rows=B),
        lambda: co.among(co.cosine_filter(), co.sign_consensus(0.7)),
    ],
    ids=["mean", "sign_consensus", "cosine_filter", "subspace_weighting", "among"],
)


def problem(name="noisy"):
    """Rows and parameters of two leaves, small and quickly compiled."""
    stack = STACKS[name].rows[:, :8]
    cut = lambda x: {"a": jnp.float32(x[..., :6]), "b": jnp.float32(x[..., 6:])}
    return cut(stack), cut(np.linspace(-1, 1, 8)), [stack[:, :6], stack[:, 6:]]


def process(reducer, optimizer):
    """`process` hands ``weights`` on to all parts, which of optax's accept none."""
    accepts_all = optax.with_extra_args_support
    return aggregating.process(
        accepts_all(optax.identity()), reducer, accepts_all(optimizer)
    )


def assert_equal(got, wanted):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.slow
@with_thresholds
def test_thresholds_may_be_injected_traced_or_scheduled(row):
    """A threshold as number, as traced array and as schedule: one value, one update."""
    values, static = row.settings()
    of_leaves = functools.wraps(row.factory)(
        lambda *args, **kwargs: co.per_leaf(row.factory(*args, **kwargs))
    )
    factory = of_leaves if row.per_leaf else row.factory
    injected = optax.inject_hyperparams(factory, static_args=tuple(static))
    injected = injected(**values, **static)
    # Not a number but in step 7: a schedule read at another step would show.
    at_seven = lambda value: lambda step: jnp.where(step == 7, value, jnp.nan)
    scheduled = row.make(**{name: at_seven(value) for name, value in values.items()})
    constant = row.make()
    rows, parameters, leaves = problem()

    def updates(hyperparams):
        state = injected.init(parameters)._replace(hyperparams=hyperparams)
        later = constant.init(parameters)._replace(step=jnp.int32(7))
        return (
            injected.update(rows, state, parameters)[0],
            scheduled.update(rows, later, parameters)[0],
            constant.update(rows, later, parameters)[0],
        )

    hyperparams = injected.init(parameters).hyperparams
    assert set(hyperparams) == set(values)
    of_injected, *at_step_seven = map(matrix, jax.jit(updates)(hyperparams))
    expected = np.concatenate(row.reference(leaves, np.ones(B)))
    close(of_injected[None], expected[None], row.rtol, ["injected"])
    close(*(update[None] for update in at_step_seven), row.rtol, ["scheduled"])
    assert expected.any()


@every_reducer
def test_traces_inside_every_combinator(row):
    """chain and process below partition, in one trace; the state keeps its shape."""
    chained = optax.chain(co.clip_examples(1.0), row.make(), optax.adam(0.1))
    processed = process(row.make(), optax.adam(0.1))
    tx = optax.partition({"x": chained, "y": processed}, {"a": "x", "b": "y"})
    rows, parameters, _ = problem()
    state = jax.eval_shape(tx.init, parameters)
    update = lambda *given: tx.update(*given, weights=jnp.ones(B), value=1.0)
    updates, new = jax.eval_shape(update, rows, state, parameters)
    same = lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype)
    assert jax.tree.all(jax.tree.map(same, updates, parameters))
    assert jax.tree.all(jax.tree.map(same, new, state))


@one_of_each
def test_chain_and_process_are_the_parts_in_order(make):
    rows, parameters, _ = problem()
    clip, reducer, adam = co.clip_examples(1.0), make(), optax.adam(0.1)
    chained = optax.chain(clip, reducer, adam)
    processed = aggregating.process(clip, reducer, adam)

    def all_three(rows):
        by_hand, _ = clip.update(rows, clip.init(parameters), parameters)
        by_hand, _ = reducer.update(by_hand, reducer.init(parameters), parameters)
        by_hand, _ = adam.update(by_hand, adam.init(parameters), parameters)
        return by_hand, *(
            tx.update(rows, tx.init(parameters), parameters)[0]
            for tx in (chained, processed)
        )

    by_hand, of_chain, of_process = jax.jit(all_three)(rows)
    assert_equal(of_chain, by_hand)
    assert_equal(of_process, by_hand)


@one_of_each
def test_process_accumulates_reduced_updates(make):
    """``process`` asks the state for one field called ready: the accumulator's."""
    rows, parameters, _ = problem()
    accumulated = optax.chain(make(), aggregating.accumulate_avg_updates(2))
    tx = aggregating.process(optax.identity(), accumulated, optax.sgd(1.0))
    alone = make()

    def three_steps(rows):
        state, one, steps = tx.init(parameters), alone.init(parameters), []
        for _ in range(3):
            updates, state = tx.update(rows, state, parameters)
            reduced, one = alone.update(rows, one, parameters)
            steps.append((matrix_of(updates), matrix_of(reduced)))
        return steps

    matrix_of = lambda tree: jnp.concatenate(jax.tree.leaves(tree))
    first, second, third = jax.jit(three_steps)(rows)
    np.testing.assert_array_equal(first[0], 0)
    wanted = -(first[1] + second[1]) / 2
    np.testing.assert_allclose(second[0], wanted, rtol=0, atol=1e-6)  # of sums of two
    np.testing.assert_array_equal(third[0], 0)
    assert np.any(second[0])


@one_of_each
def test_partition_decides_by_label(make):
    rows, parameters, _ = problem()
    sgd = lambda: optax.chain(make(), optax.sgd(1.0))
    labels = {"a": "left", "b": "right"}
    tx = optax.partition({"left": sgd(), "right": sgd()}, labels)

    def both(rows):
        updates, _ = tx.update(rows, tx.init(parameters), parameters)
        one = sgd()
        alone = {
            k: one.update({k: rows[k]}, one.init({k: p}), {k: p})[0][k]
            for k, p in parameters.items()
        }
        return updates, alone

    updates, alone = jax.jit(both)(rows)
    assert_equal(updates, alone)


@one_of_each
def test_process_makes_no_step_without_consensus(make):
    """By `skip_if_empty`, as in a chain: ``ready`` is left to an accumulator."""
    tx = process(make(), co.skip_if_empty(optax.adamw(0.1)))
    rows, parameters, _ = problem()

    @jax.jit
    def step(state, weights):
        return tx.update(rows, state, parameters, weights=weights)

    _, state = step(tx.init(parameters), jnp.ones(B))
    updates, after = step(state, jnp.zeros(B))
    assert not matrix(updates).any()
    assert_equal(after[2].inner, state[2].inner)
    updates, after = step(after, jnp.ones(B))
    assert matrix(updates).any()
    assert optax.tree.get(after[2], "count") == 2


def test_an_injected_threshold_can_be_turned_while_training():
    tx = optax.inject_hyperparams(co.cosine_filter, static_args=("average",))(
        max_distance=0.1
    )
    parameters = jnp.zeros(2)
    rows = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    state = tx.init(parameters)
    strict, state = tx.update(rows, state, parameters)
    state.hyperparams["max_distance"] = jnp.float32(1.0)
    generous, _ = tx.update(rows, state, parameters)
    assert strict.tolist() == [0, 0]
    assert generous.tolist() == [0.5, 0.5]


def test_a_schedule_counts_the_steps():
    rule = co.cosine_filter(optax.linear_schedule(0.0, 2.0, 2))
    parameters, rows = jnp.zeros(2), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    state, accepted = rule.init(parameters), []
    for _ in range(3):
        _, state = rule.update(rows, state, parameters)
        accepted.append(float(state.rule_state.accepted))
    assert accepted == [0, 1, 1]


def test_logged_numbers_are_found_in_any_state():
    tx = optax.chain(co.sign_consensus(), optax.adam(0.1))
    parameters, rows = jnp.zeros(2), jnp.array([[1.0, 1.0], [2.0, -1.0]])
    _, state = tx.update(rows, tx.init(parameters), parameters)
    assert optax.tree.get(state, "consensus_ratio") == 0.5
    assert optax.tree.get(state, "consensus_ready")
    assert optax.tree.get(state, "num_present") == 2
    tx = optax.chain(co.cosine_filter(), co.skip_if_empty(optax.sgd(0.1)))
    _, state = tx.update(rows, tx.init(parameters), parameters)
    assert optax.tree.get(state, "accepted") == 1
    assert optax.tree.get(state, "skipped") == 0
