"""What one row can change, searched for among rows made for it; clipping itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests._stacks import B, factored, first_update, matrix

NUM_ROWS, PAIRS = 16, 1000
HOWS = {
    "threshold": {},
    "automatic": {"clipping": "automatic"},
    "by leaf": {"per_leaf": True},
}


def adversarial_arrays(size):
    """Batches (PAIRS, NUM_ROWS, size); the first row of each is there, or not."""
    random = np.random.default_rng(31)
    rows = random.normal(size=(PAIRS, NUM_ROWS, size))
    rows *= 10.0 ** random.integers(-15, 15, size=(PAIRS, NUM_ROWS, 1))
    aligned, unit, broken, huge, tiny = np.split(np.arange(500), 5)
    rows[aligned] = 1e3 * np.sign(random.normal(size=(len(aligned), 1, size)))
    rows[unit] = 0
    rows[unit, :, 0] = 1 + 1e-7  # as long as is allowed, all in one coordinate
    rows[broken, 0] = np.where(random.uniform(size=(100, size)) < 0.1, np.nan, 1)
    rows[broken[:50], 0, 0] = np.inf
    rows[huge, 0] = 1e19 * 10 ** random.uniform(0, 19, (100, 1))  # squares overflow
    rows[tiny, 0] = 10 ** random.uniform(-44, -18, (100, 1))  # and underflow
    rows[-50:, 0] = 0
    return jnp.asarray(rows, jnp.float32)


def adversarial_products(terms, m, n):
    """The same of factors (PAIRS, NUM_ROWS, terms, m or n), whose terms may cancel."""
    random = np.random.default_rng(terms * m)
    shape = (PAIRS, NUM_ROWS, terms)
    left, right = random.normal(size=(*shape, m)), random.normal(size=(*shape, n))
    for factor in (left, right):
        factor *= 10.0 ** random.integers(-15, 15, size=(PAIRS, NUM_ROWS, 1, 1))
    cancel, underflow = np.arange(300), np.arange(300, 400)
    signs = np.where(np.arange(terms) % 2, -1.0, 1.0)
    signs[-1] = -signs[:-1].sum() if terms > 1 else 1
    left[cancel] = left[cancel, :, :1]
    right[cancel] = right[cancel, :, :1] * signs[:, None]
    right[cancel] *= 1 + 1e-6 * random.normal(size=(300, NUM_ROWS, terms, n))
    # the squares of the one underflow, those of the other do not overflow
    left[underflow], right[underflow] = 9e-20, 1.7e19 / np.sqrt(n)
    return jnp.asarray(left, jnp.float32), jnp.asarray(right, jnp.float32)


def of_loss(size, rule, rows, params, **given):
    """The same in microbatches: of a linear loss, whose rows are what it is given."""
    linear = lambda w, x: sum(
        jax.tree.leaves(jax.tree.map(lambda w, x: jnp.vdot(w, x[0]), w, x))
    )
    step = co.value_and_reduced_grad(linear, rule, microbatch_size=size)
    return step(params, rows, **given)[1]


def in_memory(rule, rows, params, **given):
    return rule.update(rows, given.pop("state"), params, **given)[0]


def largest_change(rule, read, rows, params, run=in_memory):
    """By how much the first row moves the sum, in float64, the worst of all pairs."""

    @jax.jit
    def sums(rows):
        def update(row, first):
            weights = jnp.ones(NUM_ROWS).at[0].set(first)
            given = {"state": rule.init(params), "weights": weights}
            return run(rule, read(row), params, **given)

        of_pair = lambda row: jax.vmap(lambda first: update(row, first))(
            jnp.arange(2.0)
        )
        return jax.vmap(of_pair)(rows)

    without, there = np.split(matrix(sums(rows), batch_ndim=2), 2, axis=1)
    return np.linalg.norm(there - without, axis=2).max()


MICROBATCHES = [pytest.param(5, marks=pytest.mark.slow)]


@pytest.mark.parametrize("size", [None, *MICROBATCHES])
@pytest.mark.parametrize("how", HOWS)
def test_no_row_changes_the_sum_by_more_than_is_stated(how, size):
    """Rows in arrays: of 1000 pairs of neighbours none, with no tolerance at all."""
    run = functools.partial(of_loss, size) if size else in_memory
    rule = co.clipped_sum(0.75, divisor=3.0, **HOWS[how])
    params = {"a": jnp.zeros(30), "b": jnp.zeros((4, 5)), "c": jnp.zeros(())}
    cut = lambda row: {
        "a": row[:, :30],
        "b": row[:, 30:50].reshape(-1, 4, 5),
        "c": row[:, 50],
    }
    change = largest_change(rule, cut, adversarial_arrays(51), params, run)
    assert 0.999 * 0.25 < change <= rule.sensitivity == 0.25


@pytest.mark.slow
def test_room_for_rounding_is_left_for_all_rows_in_microbatches_too():
    """1.3 % for 1024 rows, of which 256 are seen at a time and would want 0.1 %."""
    rule, rows, w = co.clipped_sum(1.0), jnp.full((1024, 1), 5.0), jnp.zeros(1)
    given = {"state": rule.init(w)}
    wanted = in_memory(rule, rows, w, **given)
    assert 1024 * 0.98 < wanted[0] < 1024 * 0.99
    np.testing.assert_allclose(of_loss(256, rule, rows, w, **given), wanted, rtol=1e-4)


SHAPES = {"one term": (1, 8, 9), "few terms": (3, 40, 50), "many terms": (20, 8, 9)}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_nor_does_a_factored_row(shape):
    """Where norms of factors cancel or underflow, plain ones would tell nothing."""
    terms, m, n = SHAPES[shape]
    leaf = lambda factors: co.OuterProduct(*factors, row_shape=(m, n))
    rows, params = adversarial_products(terms, m, n), jnp.zeros((m, n))
    rule = co.clipped_sum(0.5)
    assert 0.499 < largest_change(rule, leaf, rows, params) <= rule.sensitivity == 0.5
    clipped = lambda s, roster, state: (
        roster.weights * 0.5 / jnp.sqrt(jnp.maximum(s, 0.25)),
        state,
    )
    by_norms = co.reducer(co.Weighting(clipped, reads="norms"))
    assert largest_change(by_norms, leaf, rows, params) > 0.5  # the search finds it


@pytest.mark.parametrize(
    "count", [16, *(pytest.param(x, marks=pytest.mark.slow) for x in (256, 1024))]
)
def test_many_rows_in_one_direction_leave_room_for_their_rounding(count):
    """Rows that have one entry: partial sums are as large as they can be."""
    random = np.random.default_rng(count)
    lengths = 1 + random.uniform(0, 1, (300, count, 1))
    rows = jnp.asarray(lengths, jnp.float32)
    rule, params = co.clipped_sum(0.3), jnp.zeros(1)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def total(rows, weights):
        return rule.update(rows, rule.init(params), params, weights=weights)[0]

    every = jnp.ones(count)
    moved = total(rows, every) - total(rows, every.at[count // 2].set(0))
    assert np.abs(np.asarray(moved, np.float64)).max() <= rule.sensitivity


def test_rows_are_clipped_and_divided_by_what_was_said():
    rows = jnp.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [jnp.nan, 1.0]])
    update, state = first_update(co.clipped_sum(1.0, divisor=10.0), rows)
    np.testing.assert_allclose(update, [0.09, 0.12], rtol=1e-5)  # C is lowered by 3e-6
    assert state.rule_state.num_clipped == 1
    assert (state.num_present, state.num_nonfinite) == (3, 1)


@pytest.mark.parametrize("per_leaf", [False, True])
def test_a_row_whose_squared_norm_overflows_is_counted(per_leaf):
    """It is zero and costs no other row; where leaves decide, in its leaf alone."""
    rows = {"a": jnp.array([[3e30], [0.3], [jnp.inf]]), "b": jnp.array([[0.1]] * 3)}
    rule = co.clipped_sum(1.0, per_leaf=per_leaf)
    update, state = first_update(rule, rows)
    wanted = {"a": [0.3], "b": [0.2 if per_leaf else 0.1]}
    for name, value in wanted.items():
        np.testing.assert_allclose(update[name], value, rtol=1e-5)  # as above
    assert (state.num_present, state.num_nonfinite) == (1, 2)


def test_automatic_clipping_is_the_published_formula():
    rows = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    rule = co.clipped_sum(2.0, clipping="automatic", stability=0.5)
    update, _ = first_update(rule, rows)
    np.testing.assert_allclose(update, [6 / 5.5, 8 / 5.5], rtol=1e-5)  # as above


def test_every_leaf_has_its_share_of_the_norm():
    rows = {"a": jnp.full((1, 4), 9.0), "b": jnp.full((1, 9), -9.0)}
    update, state = first_update(co.clipped_sum(1.0, per_leaf=True), rows)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(update["a"], half / 2, rtol=1e-5)  # as above
    np.testing.assert_allclose(update["b"], -half / 3, rtol=1e-5)
    assert state.rule_state.num_clipped.tolist() == [1, 1]
    composed, _ = first_update(co.per_leaf(co.clipped_sum(1.0)), rows)
    np.testing.assert_array_equal(composed["a"], update["a"])


def test_a_weight_multiplies_its_row_before_it_is_clipped():
    rule, rows = co.clipped_sum(1.0), jnp.array([[0.2, 0.0], [0.0, 9.0]])
    update, _ = first_update(rule, rows, weights=jnp.array([3.0, 1e12]))
    np.testing.assert_allclose(update, [0.6, 1], rtol=1e-5)  # C is lowered by 2e-6


def test_a_weight_that_overflows_costs_its_own_row_alone():
    """Of a zero row, 1e16 of which are brought to a huge norm with hardly a divisor."""
    options = {"clipping": "automatic", "stability": 1e-30}
    rule = co.clipped_sum(1e12, divisor=1e-9, **options)
    rows = jnp.array([[0.0, 0.0], [0.0, 3.0]])
    update, state = first_update(rule, rows, weights=jnp.array([1e16, 1.0]))
    np.testing.assert_allclose(update, [0, 1e21], rtol=1e-5)  # C is lowered by 2e-6
    assert state.consensus_ready


def test_padding_changes_no_bit():
    random = np.random.default_rng(0)
    rows = jnp.asarray(random.normal(size=(8, 5)), jnp.float32)
    there = jnp.asarray([1, 1, 0, 1, 0, 0, 1, 1.0])
    rule = co.clipped_sum(1.0, divisor=4.0)
    wanted, _ = first_update(rule, rows, weights=there)
    for content in (0.0, 1e30, jnp.nan):
        filled = jnp.where(there[:, None] > 0, rows, content)
        got, state = first_update(rule, filled, weights=there)
        np.testing.assert_array_equal(got, wanted)
        assert (state.num_present, state.num_nonfinite) == (5, 0)


def test_a_schedule_is_read_at_its_step():
    norm = lambda step: 2 + jnp.asarray(step, jnp.float32)
    rule = co.clipped_sum(norm, divisor=2.0)
    rows, params = jnp.array([[30.0]]), jnp.zeros(1)
    state = rule.init(params)
    for step in range(3):
        assert state.rule_state.max_norm == 2 + step == 2 * rule.sensitivity(step)
        update, state = rule.update(rows, state, params)
        np.testing.assert_allclose(update, 1 + step / 2, rtol=1e-5)  # as above


@pytest.mark.slow
def test_factored_rows_are_clipped_as_what_they_stand_for():
    rows, params, stood_for = factored()
    every = np.concatenate(stood_for, 1)
    limit = float(np.median(np.linalg.norm(every, axis=1)))
    rule = co.clipped_sum(limit)
    update, state = rule.update(rows, rule.init(params), params)
    scales = np.minimum(1, limit / np.linalg.norm(every, axis=1))
    wanted = (scales[:, None] * every).sum(0)
    got = np.concatenate([np.ravel(update[name]) for name in sorted(rows)])
    # norms are rounded up by some units of float32
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())
    assert state.rule_state.num_clipped == B // 2


BAD = {
    "`max_norm` must be in \\[0, inf\\); got -1": {"max_norm": -1.0},
    "`max_norm` must be in \\[0, inf\\); got inf": {"max_norm": float("inf")},
    "`divisor` must be in \\[1e-09, inf\\]; got 0": {"max_norm": 1.0, "divisor": 0.0},
    "Did you mean 'automatic'": {"max_norm": 1.0, "clipping": "automatc"},
    "`stability` must be in \\(0": {"max_norm": 1.0, "stability": 0.0},
}


@pytest.mark.parametrize("message", BAD)
def test_a_wrong_argument_is_named(message):
    with pytest.raises(ValueError, match=message):
        co.clipped_sum(**BAD[message])


def test_more_rows_than_float32_can_tell_apart_are_an_error():
    rows, rule = jnp.zeros((20000, 1)), co.clipped_sum(1.0)
    with pytest.raises(ValueError, match="8192 at the most; got 20000"):
        rule.update(rows, rule.init(jnp.zeros(1)), jnp.zeros(1))
