"""MoCo, MoDo and SDMGrad over several steps, and the simplex they move on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from consensus_optax.weightings._task_weights import on_simplex
from tests import _reference_task_weights as ref

TASKS, P, STEPS = 4, 7, 6


def steps_of_rows(num_rows, seed=0):
    """Rows that lean one way, with noise, step by step."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(STEPS, num_rows, P)) + 2 * random.normal(size=P)
    return rows.astype(np.float32).astype(float)


def trained(rule, rows, weights=None):
    """Updates and the states of several steps, in one program."""
    params = jnp.zeros(P)
    weights = np.ones(rows.shape[:2]) if weights is None else weights

    def step(state, given):
        stack, there = given
        update, state = rule.update(stack, state, params, weights=there)
        return state, (update, state.rule_state.coefficients, state.consensus_ready)

    given = jnp.asarray(rows, jnp.float32), jnp.asarray(weights, jnp.float32)
    run = jax.jit(lambda given: jax.lax.scan(step, rule.init(params), given)[1])
    return [np.asarray(x) for x in run(given)]


CASES = {
    "moco": (
        lambda: co.moco(TASKS, 0.05, 0.5),
        lambda kept: ref.moco(0.05, 0.5, kept),
        TASKS,
    ),
    "modo": (
        lambda: co.modo(TASKS, learning_rate=0.05, regularization=0.5),
        lambda kept: ref.modo(kept, 2, 0.05, 0.5),
        2 * TASKS,
    ),
    "modo of three": (
        lambda: co.modo(TASKS, 3),
        lambda kept: ref.modo(kept, 3),
        3 * TASKS,
    ),
    "sdmgrad": (
        lambda: co.sdmgrad(TASKS, learning_rate=0.3),
        lambda kept: ref.sdmgrad(kept, lr=0.3),
        2 * TASKS,
    ),
    "sdmgrad of three, toward a preference": (
        lambda: co.sdmgrad(
            TASKS, 3, 0.7, [1.0, 0.0, 3.0, 1.0], learning_rate=0.2, momentum=0.8
        ),
        lambda kept: ref.sdmgrad(kept, 3, 0.7, [1.0, 0.0, 3.0, 1.0], 0.2, 0.8),
        3 * TASKS,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_several_steps_equal_the_published_loops(name):
    make, loop, num_rows = CASES[name]
    rows, kept = steps_of_rows(num_rows), [1 / TASKS] * TASKS
    updates, coefficients, _ = trained(make(), rows)
    by_loop = loop(kept)
    for stack, update, own in zip(rows, updates, coefficients, strict=True):
        wanted = by_loop(stack.tolist(), [1.0] * num_rows)
        # Up to twenty steps, none of which lengthens what a product rounds by much.
        np.testing.assert_allclose(own, kept, rtol=0, atol=1e-5)
        np.testing.assert_allclose(update, wanted, rtol=0, atol=3e-5)
    assert np.ptp(kept) > 0.05, "weights that stay as they are tell nothing"


def test_modo_of_equal_batches_is_moco():
    rows = steps_of_rows(TASKS)
    twice = np.concatenate([rows, rows], axis=1)
    one = trained(co.moco(TASKS, 0.1, 0.1), rows)
    two = trained(co.modo(TASKS, 2, 0.1, 0.1), twice)
    np.testing.assert_allclose(two[0], one[0], atol=1e-6)
    np.testing.assert_allclose(two[1], one[1], atol=1e-6)


def test_products_of_two_batches_are_not_biased_by_their_noise():
    """The least-norm weights of the true rows; one batch weighs down the noisy row."""
    random = np.random.default_rng(1)
    true, noise, steps = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([2.0, 0]), 4000
    draw = lambda: true + noise[:, None] * random.normal(size=(steps, 2, 2))
    stacks = np.concatenate([draw(), draw()], axis=1)

    def average(rule, rows):
        params = jnp.zeros(2)

        def step(state, stack):
            state = rule.update(stack, state, params)[1]
            return state, state.rule_state.coefficients

        run = jax.jit(lambda r: jax.lax.scan(step, rule.init(params), r)[1])
        return np.asarray(run(jnp.asarray(rows, jnp.float32)))[500:].mean(0)

    crossed = average(co.modo(2, 2, 0.005, 0.0), stacks)
    alone = average(co.moco(2, 0.005), stacks[:, :2])
    assert abs(crossed[0] - 0.5) < 0.1
    assert alone[0] < 0.2  # 1 / (1 + 1 + 2 * 4)


@pytest.mark.slow
def test_sdmgrad_is_scale_free_and_moco_is_not():
    rows = steps_of_rows(2 * TASKS)
    for factor in (2.0**-20, 2.0**20):
        got, kept, _ = trained(co.sdmgrad(TASKS), factor * rows)
        wanted, own, _ = trained(co.sdmgrad(TASKS), rows)
        np.testing.assert_allclose(got, factor * wanted, atol=1e-5 * factor)
        np.testing.assert_allclose(kept, own, atol=1e-5)
    plain = trained(co.moco(2 * TASKS, 0.01), rows)[1]
    assert np.abs(trained(co.moco(2 * TASKS, 0.01), 4 * rows)[1] - plain).max() > 0.01


def test_an_absent_task_keeps_its_weight_and_the_others_share():
    rows, weights = steps_of_rows(2 * TASKS), np.ones((STEPS, 2 * TASKS))
    weights[2, 1] = 0  # in the first batch alone
    weights[3, [0, 1, 2, 3]] = 0  # nobody
    slow = {"learning_rate": 0.005}
    for rule in (co.modo(TASKS, **slow), co.sdmgrad(TASKS, **slow)):
        updates, kept, ready = trained(rule, rows, weights)
        assert kept[2, 1] == kept[1, 1]
        assert abs(kept[2] - kept[1]).max() > 1e-3
        np.testing.assert_array_equal(kept[3], kept[2])
        np.testing.assert_allclose(kept.sum(1), 1, atol=1e-6)
        assert not updates[3].any()
        np.testing.assert_array_equal(ready, np.arange(STEPS) != 3)
        there = np.delete(rows[2], [1, TASKS + 1], 0)
        directions = np.random.default_rng(2).normal(size=(P, 50))
        assert (updates[2] @ directions <= (there @ directions).max(0) + 1e-5).all()


def test_moco_follows_running_estimates_of_the_rows():
    """As in the paper: the estimates are a piece of their own."""
    tx = optax.chain(co.row_momentum(0.5, TASKS), co.moco(TASKS, 0.05))
    rows, params = steps_of_rows(TASKS), jnp.zeros(P)
    state, kept, past = tx.init(params), [1 / TASKS] * TASKS, np.zeros((TASKS, P))
    update = jax.jit(tx.update)
    for stack in rows:
        past = past - 0.5 * (past - stack)
        got, state = update(jnp.asarray(stack, jnp.float32), state, params)
        wanted = ref.moco(0.05, 0.0, kept)(past.tolist(), [1.0] * TASKS)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_the_nearest_point_of_the_simplex():
    random = np.random.default_rng(5)
    points = random.normal(size=(50, 6)) * 10.0 ** random.integers(-2, 3, (50, 1))
    points[0], points[1] = 7.0, [1e20, -1e20, 1e20, 0, 0, 0]
    present = random.uniform(size=(50, 6)) < 0.7
    present[:, 0] = True
    present[:2] = True
    given = jnp.asarray(points, jnp.float32), jnp.asarray(present)
    got = np.asarray(jax.jit(jax.vmap(on_simplex))(*given))
    for point, there, found in zip(points, present, got, strict=True):
        assert not found[~there].any()
        wanted = ref.on_simplex([x for x, t in zip(point, there, strict=True) if t])
        # A unit in the last place of what the entries are less the largest one.
        np.testing.assert_allclose(found[there], wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: co.modo(3, 4), "`num_batches` must be 2 or 3; got 4"),
        (lambda: co.sdmgrad(3, 1), "`num_batches` must be 2 or 3; got 1"),
        (lambda: co.moco(0), "`num_rows` must be at least 1"),
        (lambda: co.moco(2, -1.0), r"`learning_rate` must be in \[0"),
        (lambda: co.sdmgrad(2, momentum=1.0), r"`momentum` must be in \[0"),
        (lambda: co.sdmgrad(2, preference=[-1.0, 1]), "`preference` must be a vector"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_stack_of_another_size_is_an_error():
    for rule in (co.moco(3), co.modo(2, 2), co.sdmgrad(2, 3)):
        with pytest.raises(ValueError, match="`num_rows` must be the number of rows"):
            rule.update(jnp.ones((5, P)), rule.init(jnp.zeros(P)), jnp.zeros(P))
    rule = co.sdmgrad(2, preference=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"`preference` must have .*\(2,\); got \(3,"):
        rule.update(jnp.ones((4, P)), rule.init(jnp.zeros(P)), jnp.zeros(P))


STEPPED = {
    "moco": lambda rate: (co.moco(2, learning_rate=rate), 1),
    "modo": lambda rate: (co.modo(2, learning_rate=rate), 2),
    "sdmgrad": lambda rate: (co.sdmgrad(2, learning_rate=rate), 2),
}


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("size", [1.0, 1.5e19])
def test_no_step_is_too_long(name, size):
    """Steps beyond all numbers lead to a corner of the simplex, and back."""
    rule, copies = STEPPED[name](10.0)
    params = jnp.zeros(2)
    shapes = size * np.array([[1.0, 0.0], [0.0, 0.9]]), np.eye(2), np.eye(2)
    state = rule.init(params)
    for rows in shapes:
        rows = jnp.asarray(np.tile(rows, (copies, 1)), jnp.float32)
        update, state = rule.update(rows, state, params)
        weights = state.rule_state.coefficients
        assert jnp.isfinite(update).all()
        assert abs(weights.sum() - 1) < 1e-6
        assert (weights >= 0).all()


def test_where_no_preferred_task_is_there_there_is_no_pull():
    rule, params = co.sdmgrad(2, preference=[1.0, 0.0], pull=1.0), jnp.zeros(2)
    rows = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    weights = jnp.array([0.0, 1.0, 0.0, 1.0])
    update, _ = rule.update(rows, rule.init(params), params, weights=weights)
    np.testing.assert_allclose(update, rows[1])
