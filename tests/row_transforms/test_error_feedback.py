"""Error feedback: nothing is lost, known counter-examples converge, rows are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from consensus_optax import compressors
from tests._bounds import unit
from tests._selected import cases, in_ci

KEY = jax.random.key(0)
CODES = {
    "top_k": compressors.top_k(0.25),
    "random_k": compressors.random_k(0.25, KEY, rescale=False),
    "sign": compressors.scaled_sign(),
    "int4": compressors.stochastic_quantization(4, KEY),
    "natural": compressors.natural(KEY),
    "low_rank": compressors.low_rank(1, KEY),
    "pieces": compressors.bucketed(compressors.top_k(0.25), count=2),
}


@in_ci
@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_came_in_has_gone_out_or_is_kept(name, dtype):
    rng = np.random.default_rng(0)
    steps = jnp.asarray(rng.normal(size=(20, 3, 4, 6)), dtype)
    rule, params = co.error_feedback(CODES[name], 3), jnp.zeros((4, 6), dtype)

    def step(state, rows):
        out, state = rule.update(rows, state, params)
        return state, (co.materialize(out), jnp.square(state.error).sum((1, 2)))

    state, (sent, errors) = jax.jit(
        lambda steps: jax.lax.scan(step, rule.init(params), steps)
    )(steps)
    assert sent.dtype == state.error.dtype == jnp.float32
    given = np.asarray(steps, np.float64)
    total = np.asarray(sent, np.float64).sum(0) + np.asarray(state.error, np.float64)
    sizes = np.abs(given).sum(0) + np.abs(np.asarray(sent)).sum(0)
    # two sums for each of 20 steps
    np.testing.assert_array_less(np.abs(total - given.sum(0)), 40 * unit() * sizes)
    delta = CODES[name].contraction((4, 6))
    if delta:
        largest = (given**2).sum((2, 3)).max()
        assert np.all(np.asarray(errors) <= 4 * (1 - delta) / delta**2 * largest + 1e-6)


@in_ci
@pytest.mark.parametrize("scale", ["max", "range"])
@pytest.mark.parametrize("bits", [2, 4])
def test_errors_stay_bounded_where_no_share_of_the_length_is_known(bits, scale):
    """Of 4096 entries, of which a few are large: by the largest entry alone."""
    code = compressors.stochastic_quantization(bits, KEY, scale=scale)
    params, rng = jnp.zeros(4096), np.random.default_rng(0)
    rule = co.error_feedback(code, 1)
    assert not code.contraction(params.shape)
    if code.largest is None:
        with pytest.raises(ValueError, match="contraction of every leaf"):
            rule.init(params)
        return
    rows = jnp.asarray(rng.normal(size=(1, 4096)) ** 3, jnp.float32)
    step = lambda state, _: rule.update(rows, state, params)[::-1]
    run = lambda state: jax.lax.scan(step, state, length=200)[0].error
    most = code.largest / (1 - code.largest) * float(jnp.abs(rows).max())
    assert float(jnp.abs(jax.jit(run)(rule.init(params))).max()) <= most * (1 + 1e-5)


def test_what_is_no_contraction_of_a_leaf_is_refused():
    """It diverges: by 10 to the 6 in 200 steps, of one and the same row."""
    norm = compressors.stochastic_quantization(4, KEY, scale="norm")
    params = {"small": jnp.zeros(4), "w": jnp.zeros((64, 64)), "n": jnp.int32(0)}
    with pytest.raises(ValueError, match=r"contraction of every leaf.*'w'.*bucketed"):
        co.error_feedback(norm, 1).init(params)
    pieces = compressors.bucketed(norm, size=512)
    with pytest.raises(ValueError, match=r"none of .*'w'.*\(64, 64\)"):
        co.error_feedback(pieces, 1).init(params)
    co.error_feedback(compressors.bucketed(norm, size=32), 1).init(params)


def descend(rule, gradient, start, rate, num_steps):
    """The last iterate and the largest one on the way."""
    optimizer = optax.chain(rule, co.mean(), optax.sgd(rate))

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(gradient(x), state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), jnp.abs(x).max()

    begin = start, optimizer.init(start)
    run = jax.jit(lambda begin: jax.lax.scan(step, begin, length=num_steps))
    (x, _), sizes = run(begin)
    return np.asarray(x), np.asarray(sizes)


@in_ci
def test_greedy_sparsification_diverges_and_error_feedback_mends_it():
    """Example 1 of Beznosikov et al., 2002.12410: <a_i, x>^2 + |x|^2 / 4."""
    a = 2 - 5 * jnp.eye(3)  # (-3, 2, 2), ...
    rows = lambda x: 2 * (a @ x)[:, None] * a + x[None] / 2
    start, rate, code = jnp.ones(3), 0.02, compressors.top_k(1 / 3)
    plain, sizes = descend(co.compressed(code), rows, start, rate, 200)
    # each step multiplies by 1 + 11 rate / 6
    np.testing.assert_allclose(sizes[-1], (1 + 11 * rate / 6) ** 200, rtol=1e-3)
    mended, _ = descend(co.error_feedback(code, 3), rows, start, rate, 2000)
    assert np.abs(mended).max() < 1e-3
    assert np.abs(plain).max() > 1e3


def test_signs_stall_and_error_feedback_mends_it():
    """Counter-example 2 of Karimireddy et al.: f = |x - y| + eps |x + y|, eps = 1/2."""

    def rows(x):
        across, along = jnp.sign(x[0] - x[1]), 0.5 * jnp.sign(x[0] + x[1])
        return jnp.stack([along + across, along - across])[None]

    value = lambda x: abs(x[0] - x[1]) + 0.5 * abs(x[0] + x[1])
    start, code = jnp.array([1.2, 0.9]), compressors.scaled_sign()
    rate = 0.003
    plain, _ = descend(co.compressed(code), rows, start, rate, 3000)
    # signs of a gradient are those of (1, -1): the sum never changes
    np.testing.assert_allclose(plain.sum(), 2.1, rtol=1e-3)
    mended, _ = descend(co.error_feedback(code, 1), rows, start, rate, 3000)
    assert value(mended) < 0.05 < 1 < value(plain)


@pytest.mark.parametrize("name", cases(CODES, "top_k"))
def test_who_is_away_or_broken_keeps_what_it_has(name):
    rng = np.random.default_rng(1)
    params = {"a": jnp.zeros((4, 6)), "b": jnp.zeros((4, 6))}
    draw = lambda: {
        k: jnp.asarray(rng.normal(size=(4, 4, 6)), jnp.float32) for k in "ab"
    }
    rule = co.error_feedback(CODES[name], 4)
    run = jax.jit(lambda rows, state, w: rule.update(rows, state, params, weights=w))
    _, state = run(draw(), rule.init(params), jnp.ones(4))
    rows = draw()
    rows["b"] = rows["b"].at[2, 0, 0].set(jnp.inf)
    out, after = run(rows, state, jnp.array([1.0, 0.0, 1.0, 1.0]))
    for leaf in "ab":
        before, now = np.asarray(state.error[leaf]), np.asarray(after.error[leaf])
        assert before[1].tobytes() == now[1].tobytes()  # away
        assert before[2].tobytes() == now[2].tobytes()  # broken
        assert np.all(np.any(now[[0, 3]] != before[[0, 3]], (1, 2)))
        found = np.asarray(co.materialize(out)[leaf])
        assert np.isfinite(found[[0, 3]]).all()
        assert not np.isfinite(found[2]).any()


@in_ci
def test_a_sum_that_overflows_is_not_remembered():
    rule, params = co.error_feedback(compressors.top_k(0.5), 1), jnp.zeros(2)
    rows = jnp.array([[3e38, 2.9e38]])
    _, state = rule.update(rows, rule.init(params), params)
    out, after = rule.update(rows, state, params)
    assert np.isnan(out).all()
    assert after.error.tolist() == state.error.tolist()


@in_ci
def test_clients_are_remembered_by_their_number():
    """Those of a round as if all were there and the others of weight 0."""
    rng = np.random.default_rng(2)
    params, code = jnp.zeros(8), compressors.stochastic_quantization(4, KEY)
    rule = co.error_feedback(code, 7)
    every, state = rule.init(params), rule.init(params)
    for chosen in ([3, 0, 5], [5, 6, 3], [1, 3, 7]):  # there is no 7
        rows = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)
        there = [i for i in chosen if i < 7]
        whole = jnp.zeros((7, 8)).at[jnp.array(there)].set(rows[: len(there)])
        weights = jnp.zeros(7).at[jnp.array(there)].set(1.0)
        wanted, every = rule.update(whole, every, params, weights=weights)
        out, state = rule.update(rows, state, params, clients=jnp.array(chosen))
        np.testing.assert_array_equal(out[: len(there)], wanted[jnp.array(there)])
        np.testing.assert_array_equal(state.error, every.error)
    assert state.error.shape == (7, 8)
    assert not state.error[jnp.array([2, 4])].any()


@in_ci
def test_clients_over_devices():
    """State by client along the mesh; each device has the rows of its own."""
    code = compressors.natural(KEY)
    rule, params = co.error_feedback(code, 16, axis_name="clients"), jnp.zeros(5)
    mesh = jax.make_mesh((8,), ("clients",), axis_types=(AxisType.Auto,))
    rows = jnp.asarray(np.random.default_rng(3).normal(size=(16, 5)), jnp.float32)
    kept = co.row_momentum(0.0, 16).init(params).rule_state.momentum

    def each(rows, error):
        state = rule.init(params)._replace(error=error)
        out, state = rule.update(rows, state, params)
        return out, state.error

    spread = jax.shard_map(
        each, mesh=mesh, in_specs=P("clients"), out_specs=P("clients")
    )
    for one, other in zip(jax.jit(spread)(rows, kept), each(rows, kept), strict=True):
        np.testing.assert_array_equal(one, other)


@in_ci
def test_of_a_client_that_is_there_twice_the_first_present_row_is_kept():
    rule, params = co.row_momentum(0.5, 3), jnp.zeros(1)
    rows, state = jnp.array([[2.0], [9.0], [4.0], [6.0], [8.0]]), rule.init(params)
    clients, weights = jnp.array([1, 2, 2, 2, 0]), jnp.array([0.0, 0.0, 1.0, 1.0, 1.0])
    _, state = rule.update(rows, state, params, weights=weights, clients=clients)
    assert state.rule_state.momentum.tolist() == [[4.0], [0.0], [2.0]]


@in_ci
def test_momentum_remembers_clients_too():
    rule, params = co.row_momentum(0.5, 3), jnp.zeros(1)
    rows, state = jnp.array([[4.0], [8.0]]), rule.init(params)
    out, state = rule.update(rows, state, params, clients=jnp.array([2, 0]))
    assert out.tolist() == [[2.0], [4.0]]
    assert state.rule_state.momentum.tolist() == [[4.0], [0.0], [2.0]]


def test_bad_arguments():
    scaled = compressors.random_k(0.5, KEY)
    with pytest.raises(
        ValueError, match=r"`compressor` must be a contraction.*rescale"
    ):
        co.error_feedback(scaled, 3)
    fixed = compressors.stochastic_quantization(8, KEY, scale=1.0)
    with pytest.raises(ValueError, match=r"`compressor` must be a contraction"):
        co.error_feedback(fixed, 3)
    rule, params = co.error_feedback(compressors.top_k(0.5), 3), jnp.zeros(2)
    with pytest.raises(
        ValueError, match=r"`num_rows` must be .* got 3.*rows are 2.*clie"
    ):
        rule.update(jnp.ones((2, 2)), rule.init(params), params)
    with pytest.raises(
        ValueError, match=r"`clients` must be .*\(2,\) of integers.*got int32 \(3,\)"
    ):
        rule.update(jnp.ones((2, 2)), rule.init(params), params, clients=jnp.arange(3))


@pytest.mark.parametrize(
    "rule",
    [
        co.error_feedback(compressors.top_k(0.5), 2),
        co.compressed(compressors.random_k(0.5, KEY)),
        co.row_momentum(0.9, 2),
    ],
    ids=["error feedback", "compressed", "momentum"],
)
def test_clients_are_integers_for_every_row(rule):
    params, rows = jnp.zeros(2), jnp.ones((2, 2))
    run = lambda clients: rule.update(rows, rule.init(params), params, clients=clients)
    for wrong in ([0.0, 1.0], jnp.ones(2), jnp.arange(3), "ab", True):
        with pytest.raises(
            ValueError, match=r"`clients` must be an array \(2,\) of int"
        ):
            run(wrong)
    listed, given = run([1, 0])[0], run(jnp.array([1, 0]))[0]
    np.testing.assert_array_equal(listed, given)
