"""Gauss-Newton in the span of the rows, beside dense solutions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from tests._models import assert_close

RANDOM = np.random.default_rng(0)
PARAMS = {"w": jnp.zeros((5, 3)), "b": jnp.zeros(4)}


def draw(count, scale=1.0):
    rows = {"w": RANDOM.normal(size=(count, 5, 3)), "b": RANDOM.normal(size=(count, 4))}
    return {k: scale * x for k, x in rows.items()}, RANDOM.normal(size=count)


def matrix(rows):
    flat = [np.asarray(rows[k], np.float64).reshape(len(rows[k]), -1) for k in PARAMS]
    return np.concatenate(flat, 1)


def dense(rows, values, weights, damping, previous=None, share=0.0):
    """By the P x P normal equations, which no Gramian enters."""
    j, r = matrix(rows), np.asarray(values, np.float64)
    past = np.zeros(j.shape[1]) if previous is None else previous
    normal = j.T @ (weights[:, None] * j) + damping * np.eye(j.shape[1])
    right = j.T @ (weights * r) + damping * share * past
    return np.linalg.solve(normal, right)


def flat(update):
    return np.concatenate([np.ravel(np.asarray(update[k], np.float64)) for k in PARAMS])


@pytest.mark.parametrize("count", [1, 6, 30])
@pytest.mark.parametrize("x64", [False, True])
def test_equals_the_dense_solution(count, x64):
    """Fewer and more rows than the 19 parameters, three steps with momentum."""
    dtype = jnp.float64 if x64 else jnp.float32
    with jax.enable_x64(x64):
        params = jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), PARAMS)
        rule = co.gauss_newton(0.5, momentum=0.7)
        state, past = rule.init(params), np.zeros(19)
        for _ in range(3):
            rows, values = draw(count)
            weights = RANDOM.integers(0, 3, count) + (np.arange(count) == 0)
            cast = lambda x, dtype=dtype: jnp.asarray(x, dtype)
            update, state = jax.jit(rule.update)(
                jax.tree.map(cast, rows),
                state,
                params,
                weights=cast(weights),
                values=cast(values),
            )
            past = dense(rows, values, weights, 0.5, past, 0.7)
            # The trace of the weighted G is at most 3 * 30 * 19, so the condition
            # number 3.4e3; of an error of the solution J^T keeps its root, 58 eps.
            rtol = 1e-10 if x64 else 1e-5
            np.testing.assert_allclose(
                flat(update), past, rtol=0, atol=rtol * abs(past).max()
            )
            assert bool(state.consensus_ready)
            assert bool(state.rule_state.rule_state.converged)


def test_damping_goes_from_the_best_fit_to_the_gradient():
    rows, values = draw(6)
    j = matrix(rows)
    given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), rows)
    values = jnp.asarray(values, jnp.float32)

    def update(damping):
        rule = co.gauss_newton(damping)
        return flat(rule.update(given, rule.init(PARAMS), PARAMS, values=values)[0])

    least = np.linalg.lstsq(j, np.asarray(values, np.float64), rcond=None)[0]
    np.testing.assert_allclose(update(1e-4), least, atol=1e-3)
    gradient = j.T @ np.asarray(values, np.float64)
    np.testing.assert_allclose(1e6 * update(1e6), gradient, rtol=1e-3, atol=1e-3)


def loss(params, batch):
    """A residual: one number for every example."""
    x, y = batch
    hidden = jnp.tanh(x @ params["w"])
    return jnp.sum(hidden @ params["v"]) - jnp.sum(y)


def given(count=8):
    rng = np.random.default_rng(1)
    cast = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"w": cast(3, 6), "v": cast(6)}, (cast(count, 3), cast(count))


def steps(rule, size, params, batch):
    state, outs = rule.init(params), []
    run = co.value_and_reduced_grad(loss, rule, microbatch_size=size)
    for step in range(3):
        weights = jnp.ones(batch[1].shape[0]).at[0].set(step)
        _, update, state = run(params, batch, state=state, weights=weights)
        outs.append(update)
    return outs


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_every_source_gives_the_same(momentum):
    rule = co.gauss_newton(0.1, momentum)
    params, batch = given()
    expected = jax.jit(lambda *args: steps(rule, None, *args))(params, batch)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    for way in ("microbatches", "mesh"):
        if way == "mesh":
            on_mesh = co.sharded(rule, "data")

            def padded(params, batch, on_mesh=on_mesh):
                state, outs = on_mesh.init(params), []
                run = co.value_and_reduced_grad(loss, on_mesh)
                for step in range(3):
                    first = jax.lax.axis_index("data") == 0
                    weights = jnp.ones(batch[1].shape[0])
                    weights = weights.at[0].set(jnp.where(first, step, 1))
                    _, update, state = run(params, batch, state=state, weights=weights)
                    outs.append(update)
                return outs

            run = jax.shard_map(
                padded, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()
            )
        else:
            run = lambda *args: steps(rule, 3, *args)
        got = jax.jit(run)(params, batch)
        # a condition number of some hundreds times a rounding of sums of 8
        jax.tree.map(lambda x, y: assert_close(x, y, 1e-4), got, expected)


def test_one_step_solves_a_linear_model():
    params, batch = {"w": jnp.zeros((3, 1))}, given(3)[1]
    residual = lambda params, batch: jnp.sum(batch[0] @ params["w"]) - jnp.sum(batch[1])
    optimizer = optax.chain(co.gauss_newton(1e-6), optax.sgd(1.0))
    values, rows = co.per_example_value_and_grad(residual)(params, batch)
    step, _ = optimizer.update(rows, optimizer.init(params), params, values=values)
    params = optax.apply_updates(params, step)
    # the damping, a millionth of squared lengths about 1, stays
    assert abs(batch[0] @ params["w"][:, 0] - batch[1]).max() < 1e-4


def test_a_singular_system_is_no_consensus():
    rows = {"w": jnp.ones((2, 5, 3)), "b": jnp.ones((2, 4))}
    rule = co.gauss_newton(0.0)
    values = jnp.array([1.0, 2.0])
    update, state = rule.update(rows, rule.init(PARAMS), PARAMS, values=values)
    # rounding may leave a pivot, but never a solution of two equations at odds
    assert not bool(state.rule_state.converged)
    assert bool(np.isfinite(flat(update)).all())
    assert bool(state.consensus_ready) == bool(flat(update).any())


def test_of_dependent_rows_the_best_fit_or_nothing():
    """One row more than parameters; of every second stack all equations agree."""
    rng, params, rule = np.random.default_rng(0), jnp.zeros(3), co.gauss_newton(0.0)
    update = jax.jit(lambda r, v: rule.update(r, rule.init(params), params, values=v))
    ready = []
    for number in range(60):
        rows, values = rng.normal(size=(4, 3)), rng.normal(size=4)
        values = rows @ rng.normal(size=3) if number % 2 else values
        given = jnp.asarray(rows, jnp.float32), jnp.asarray(values, jnp.float32)
        got, state = update(*given)
        best = np.linalg.lstsq(np.float64(given[0]), np.float64(given[1]))[0]
        ready.append(bool(state.consensus_ready))
        if ready[-1]:  # off by what the residual allows, of rows that are not parallel
            assert np.linalg.norm(got - best) <= 0.1 * np.linalg.norm(best)
            assert float(state.rule_state.residual) <= 0.01
        else:
            assert not np.any(got)
    assert not any(ready[::2])
    assert any(ready[1::2])


def test_bad_rows_and_residuals_are_absent():
    rows, values = draw(5)
    cast = lambda x: jnp.asarray(x, jnp.float32)
    rows, values = jax.tree.map(cast, rows), cast(values)
    bad_rows = {"w": rows["w"].at[1, 0, 0].set(jnp.nan), "b": rows["b"]}
    rule = co.gauss_newton(0.3)
    update = lambda rows, values, **extra: rule.update(
        rows, rule.init(PARAMS), PARAMS, values=values, **extra
    )
    got, state = update(bad_rows, values.at[3].set(jnp.nan))
    expected, _ = update(rows, values, weights=jnp.array([1.0, 0, 1, 0, 1]))
    np.testing.assert_allclose(flat(got), flat(expected), rtol=1e-6)
    assert int(state.num_nonfinite) == 1


def test_what_is_missing():
    rule = co.gauss_newton(0.1)
    with pytest.raises(ValueError, match="`values` must be"):
        rule.update(jax.tree.map(lambda x: x[None], PARAMS), rule.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="`damping` must be in"):
        co.gauss_newton(-1.0)
