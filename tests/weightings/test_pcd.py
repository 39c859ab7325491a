"""Priority-constrained descent: several steps beside the loop, and what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests import _reference_priority as ref

pytestmark = pytest.mark.slow

B, P, STEPS = 4, 9, 5


def steps_of_rows(seed):
    random = np.random.default_rng(seed)
    rows = random.normal(size=(STEPS, B, P)) * [[1.0], [30.0], [0.1], [1.0]]
    return rows.astype(np.float32).astype(float)


def trained(rule, rows, weights=None):
    """Updates and states of several steps, in one program."""
    params = jnp.zeros(rows.shape[-1])
    weights = np.ones(rows.shape[:2]) if weights is None else weights

    def step(state, given):
        stack, there = given
        update, state = rule.update(stack, state, params, weights=there)
        return state, (update, state.rule_state, state.consensus_ready)

    given = jnp.asarray(rows, jnp.float32), jnp.asarray(weights, jnp.float32)
    return jax.jit(lambda x: jax.lax.scan(step, rule.init(params), x)[1])(given)


@pytest.mark.parametrize(
    ("tau", "decay", "index"), [(0.02, 0.999, 0), (0.3, 0.5, 2), (0.0, 0.9, 1)]
)
def test_several_steps_equal_the_published_loop(tau, decay, index):
    bound = 0
    for seed in range(3):
        rows, averages = steps_of_rows(seed), ([0.0] * B, [0.0] * B)
        loop = ref.pcd(tau, decay, index, averages)
        rule = co.pcd(B, tau, decay, index, regularization=1e-6)
        updates, states, _ = trained(rule, rows)
        for stack, update in zip(rows, np.asarray(updates), strict=True):
            wanted = np.array(loop(stack.tolist(), [1.0] * B))
            # Cosines of float32, and the regularization.
            size = np.linalg.norm(wanted)
            np.testing.assert_allclose(update, wanted, rtol=0, atol=1e-4 * size)
            bound += np.abs(wanted - stack[index]).max() > 1e-2 * size
        assert np.asarray(states.converged).all()
    assert bound > 3, "where no constraint binds nothing is tested"


def random_stacks(count=100):
    random = np.random.default_rng(7)
    lean = random.normal(size=(count, 1, P)) / 3
    return np.float32(random.normal(size=(count, B, P)) + lean)


def test_every_other_row_has_its_part_of_the_gain():
    """At the first step a normalized row is its direction."""
    tau, stacks = 0.1, random_stacks()
    rule, params = co.pcd(B, tau), jnp.zeros(P)
    state = rule.init(params)
    run = jax.jit(jax.vmap(lambda rows: rule.update(rows, state, params)[0]))
    updates = np.asarray(run(jnp.asarray(stacks)), float)
    lengths = np.linalg.norm(stacks, axis=2)
    np.testing.assert_allclose(
        np.linalg.norm(updates, axis=1), lengths[:, 0], rtol=1e-5
    )
    cosines = np.einsum("sbp,sp->sb", stacks, updates) / lengths / lengths[:, :1]
    # The step that is bounded is d, and u is d at another length: d of these lengths.
    directions = stacks / lengths[..., None]
    for rows, update, own in zip(directions, updates, cosines, strict=True):
        d = np.array(ref.constrained(rows[0].tolist(), rows[1:].tolist(), tau))
        assert (own[1:] * np.linalg.norm(d) >= tau - 1e-3).all()
        assert own[0] > 0
        assert np.isfinite(update).all()


def test_the_scale_of_another_row_is_irrelevant_and_so_is_their_order():
    rows = steps_of_rows(1)
    wanted = np.asarray(trained(co.pcd(B, 0.3), rows)[0])
    scaled = rows * np.array([1, 2.0**10, 2.0**-10, 8])[:, None]
    np.testing.assert_allclose(trained(co.pcd(B, 0.3), scaled)[0], wanted, atol=1e-4)
    order = trained(co.pcd(B, 0.3), rows[:, [0, 3, 1, 2]])[0]
    np.testing.assert_allclose(order, wanted, atol=1e-4)
    whole = np.asarray(trained(co.pcd(B, 0.3), 2.0**20 * rows)[0])
    np.testing.assert_allclose(whole, 2.0**20 * wanted, atol=1e-4 * 2.0**20)


def first(rows, **options):
    update, _, ready = trained(co.pcd(len(rows), **options), np.array([rows]))
    return np.asarray(update)[0], bool(ready[0])


def test_constraints_that_exclude_each_other_are_dropped():
    for tau in (0.02, 1.0):
        update, ready = first([[3.0, 4.0], [1.0, 0.0], [-1.0, 0.0]], tau=tau)
        np.testing.assert_allclose(update, [3, 4], rtol=1e-5)
        assert ready
    # Nothing is asked for but not to be opposed, and that can be met.
    update, _ = first([[3.0, 4.0], [1.0, 0.0], [-1.0, 0.0]], tau=0.0)
    np.testing.assert_allclose(update, [0, 5], atol=2e-3)


def test_nothing_without_the_row_that_has_priority():
    assert not first([[0.0, 0.0], [1.0, 0.0]])[1]
    assert not first([[1.0, 0.0], [-1.0, 0.0]], tau=0.0)[1]  # nothing is left of it
    rows = np.ones((1, 2, 3))
    for weights, wanted in (([0.0, 1.0], False), ([1.0, 0.0], True)):
        ready = trained(co.pcd(2), rows, np.array([weights]))[2]
        assert bool(ready[0]) == wanted


def test_an_absent_row_asks_for_nothing_and_keeps_its_average():
    rows, weights = steps_of_rows(2), np.ones((STEPS, B))
    weights[1:3, 1] = 0
    updates, states, _ = trained(co.pcd(B, 0.3), rows, weights)
    for field in (states.squares, states.mass):
        np.testing.assert_array_equal(np.asarray(field)[1:3, 1], field[0, 1])
    without = trained(co.pcd(B - 1, 0.3), np.delete(rows, 1, 1)[:3])[0]
    np.testing.assert_allclose(updates[1:3], without[1:3], atol=1e-5)


def test_arguments_are_checked():
    for make, message in (
        (lambda: co.pcd(2, 1.5), r"`tau` must be in \[0"),
        (lambda: co.pcd(2, decay=1.0), r"`decay` must be in \[0"),
        (lambda: co.pcd(2, index=2), "`index` must be less than the number of rows, 2"),
        (lambda: co.pcd(2, regularization=0.0), r"`regularization` must be in \(0"),
        (lambda: first(np.ones((3, 2)).tolist(), index=3), "`index` must be less"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("short", [1.0, 1e-2, 3e-3, 1e-6])
def test_a_row_is_not_opposed_however_short_it_is_today(short):
    """Nor are others for its sake: three usual steps, then one where row 2 is short."""
    rows = np.tile([[1.0, 0, 0], [-0.5, 0.866, 0], [-0.9, 0.0, 0.436]], (4, 1, 1))
    rows[-1, 2] *= short
    rule = co.pcd(3, regularization=1e-4)
    update = np.asarray(trained(rule, rows)[0])[-1]
    directions = rows[-1] / np.linalg.norm(rows[-1], axis=1, keepdims=True)
    # Short of its gain by epsilon times a multiplier, of about 1 here for three rows.
    assert (directions @ update > -10 * 1e-4 * np.linalg.norm(update)).all()


@pytest.mark.parametrize("short", [1.0, 1e-2, 1e-6])
def test_constraints_that_leave_no_way_are_dropped(short):
    rows = np.tile([[1.0, 0.5], [0.0, 1.0], [0.0, -1.0]], (2, 1, 1))
    rows[-1, 2] *= short
    update = np.asarray(trained(co.pcd(3), rows)[0])[-1]
    np.testing.assert_allclose(update, rows[-1, 0], rtol=1e-5)  # the first row's
