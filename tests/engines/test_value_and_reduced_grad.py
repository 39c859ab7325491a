"""How many rows are computed at a time must not change the answer, for any rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from consensus_optax._rules.solvers import SolverState
from consensus_optax.weightings._geometric_median import GeometricMedianState
from tests.zoo import KINDS

ROWS, WIDTH = 5, 6


def loss(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["w"] + params["b"][None])
    return jnp.mean((hidden @ params["v"] * params["scale"] - y) ** 2)


def setting(bad_row=None):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    # small, so that no tanh saturates: 1 - tanh^2 is rounding there, of any sign
    params = {
        "w": 0.2 * draw(WIDTH, 8),
        "b": 0.2 * draw(8),
        "v": draw(8, 2),
        "scale": jnp.ones(()),
    }
    x, y = draw(ROWS, WIDTH) + 1, draw(ROWS, 2) + 1
    if bad_row is not None:
        x = x.at[bad_row].set(jnp.nan)
    return params, (x, y)


def steps(reducer, microbatch_size, batch, params, weights=None, count=2):
    """Two steps, so that states which remember are tried as well."""
    run = jax.jit(
        lambda state: co.value_and_reduced_grad(
            loss, reducer, microbatch_size=microbatch_size
        )(params, batch, state=state, weights=weights)
    )
    state = reducer.init(params)
    for _ in range(count):
        value, update, state = run(state)
    return value, update, state


def leaves_of(tree):
    """All numbers but residuals of solvers, which are rounding and nothing else."""
    solved = lambda node: isinstance(node, SolverState | GeometricMedianState)
    keep = lambda node: node.converged if solved(node) else node
    return jax.tree.leaves(jax.tree.map(keep, tree, is_leaf=solved))


def assert_same(x, y):
    """Equal to float32 rounding of sums in another order, of entries of order one."""
    for a, b in zip(leaves_of(x), leaves_of(y), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        size = max(np.abs(a).max(initial=0), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-5 * size)


def cases():
    """One rule of a kind; of rows as they are all are asked in test_sources.py."""
    for row in KINDS:
        now = row in KINDS[::9]
        marks = () if now else pytest.mark.whole_zoo
        yield pytest.param(row, id=str(row), marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize("row", [*cases()])
def test_microbatches_of_two_give_what_all_rows_at_once_give(row):
    """Five rows in microbatches of two, one row nan and one absent."""
    params, batch = setting(bad_row=3)
    weights = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0])
    reducer = row.make(num_rows=ROWS)
    whole = steps(reducer, None, batch, params, weights)
    parts = steps(reducer, 2, batch, params, weights)
    assert_same(whole, parts)
    assert int(parts[2].num_present) == 3
    assert int(parts[2].num_nonfinite) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(parts[1]))


@pytest.mark.parametrize(
    "size", [1, 3, *(pytest.param(size, marks=pytest.mark.slow) for size in (5, 8))]
)
def test_any_size_gives_the_same(size):
    params, batch = setting()
    for reducer in (co.sign_consensus(0.7), co.cosine_filter(1.0)):
        whole = steps(reducer, None, batch, params)
        assert_same(whole, steps(reducer, size, batch, params))


def test_mean_is_the_plain_gradient():
    params, batch = setting()
    value, update, state = steps(co.mean(), 2, batch, params)
    expected = jax.value_and_grad(loss)(params, batch)
    assert_same((value, update), expected)
    assert bool(state.consensus_ready)


@pytest.mark.parametrize("size", [None, 2])
def test_no_sound_row_gives_zero(size):
    params, (x, y) = setting()
    for reducer in (co.mean(), co.sign_consensus(), co.cosine_filter()):
        value, update, state = steps(reducer, size, (x * jnp.nan, y), params)
        assert not any(leaf.any() for leaf in jax.tree.leaves(update))
        assert not bool(state.consensus_ready)
        assert int(state.num_nonfinite) == ROWS
        assert np.isnan(value)


@pytest.mark.parametrize("size", [None, 2])
def test_the_value_is_the_mean_loss_of_sound_rows_that_are_there(size):
    """A loss that is nan counts as little as that of an absent row, nan or not."""
    params, (x, y) = setting()
    losses = co.per_example_value_and_grad(loss)(params, (x, y))[0]
    batch, weights = (x.at[jnp.array([1, 3])].set(jnp.nan), y), jnp.arange(5.0)
    weights = weights.at[3].set(0)
    value, _, state = steps(co.mean(), size, batch, params, weights, count=1)
    wanted = np.average(np.asarray(losses)[[2, 4]], weights=[2, 4])
    np.testing.assert_allclose(value, wanted, rtol=1e-6)  # of two numbers
    assert (state.num_present, state.num_nonfinite) == (2, 1)


def test_aux_comes_back_in_the_order_of_the_rows():
    params, (x, y) = setting()
    with_aux = lambda p, batch: (loss(p, batch), {"first": batch[0][:, 0]})
    for size in (None, 2, 3):
        step = co.value_and_reduced_grad(
            with_aux, co.mean(), has_aux=True, microbatch_size=size
        )
        (_, aux), _, _ = step(params, (x, y), state=co.mean().init(params))
        np.testing.assert_array_equal(aux["first"], x[:, 0])


@pytest.mark.parametrize("size", [None, 1, 2])
def test_random_keys_do_not_depend_on_the_microbatches(size):
    params, batch = setting()

    def noisy(p, batch, key):
        return loss(p, batch) * jax.random.uniform(key)

    step = co.value_and_reduced_grad(
        noisy, co.mean(), prng_argnum=2, microbatch_size=size
    )
    _, update, _ = step(params, batch, jax.random.key(3), state=co.mean().init(params))
    rows = co.per_example_grad(noisy, prng_argnum=2)(params, batch, jax.random.key(3))
    expected = jax.tree.map(lambda leaf: leaf.mean(0), co.materialize(rows))
    assert_same(update, expected)


@pytest.mark.slow
def test_groups_are_rows_whatever_the_microbatch():
    params, (x, y) = setting()
    batch = jnp.concatenate([x, x[:1]]), jnp.concatenate([y, y[:1]])
    run = lambda **sizes: co.value_and_reduced_grad(
        loss, co.sign_consensus(), group_size=2, **sizes
    )(params, batch, state=co.sign_consensus().init(params))[1]
    assert_same(run(), run(microbatch_size=2))
    singles = steps(co.sign_consensus(), 2, batch, params)[1]
    assert any(
        not np.allclose(a, b)
        for a, b in zip(jax.tree.leaves(run()), jax.tree.leaves(singles), strict=True)
    )


def test_losses_reach_rules_that_read_them():
    params, batch = setting()
    keep = co.keep_smallest_losses(2)
    rows = co.per_example_value_and_grad(loss)(params, batch)
    expected, _ = keep.update(rows[1], keep.init(params), params, values=rows[0])
    for size in (None, 2):
        assert_same(steps(keep, size, batch, params, count=1)[1], expected)


def test_folds_take_the_memory_of_the_parameters():
    """Temporary bytes do not grow with B beyond the batch itself; the stack would."""
    width = 256
    params = jnp.ones((width, width))
    fun = lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2)
    reducer = co.sign_consensus(0.7)

    def temporary(rows):
        step = co.value_and_reduced_grad(fun, reducer, microbatch_size=4)
        x = jnp.ones((rows, width))
        compiled = jax.jit(lambda x: step(params, x, state=reducer.init(params)))
        return compiled.lower(x).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(8), temporary(128)
    assert many - few < params.nbytes  # 120 rows more, each as large as this
    assert many < 12 * params.nbytes  # four statistics, twice, and a microbatch


def test_bad_arguments_say_what_to_do():
    params, batch = setting()
    with pytest.raises(ValueError, match="`microbatch_size` must be at least 1; got 0"):
        co.value_and_reduced_grad(loss, co.mean(), microbatch_size=0)
    with pytest.raises(ValueError, match="`reducer` must be a reducer"):
        co.value_and_reduced_grad(loss, optax.chain(co.mean()))
    step = co.value_and_reduced_grad(loss, co.mean(), microbatch_size=2)
    with pytest.raises(ValueError, match=r"`weights` must have shape \(5,\)"):
        step(params, batch, state=co.mean().init(params), weights=jnp.ones(4))
