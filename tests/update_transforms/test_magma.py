"""Leaves that step at random and as they agree, against a plain loop."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co

pytestmark = pytest.mark.standard_promotion  # optax mixes types in Adam

RANDOM = np.random.default_rng(3)
SHAPES = {"a": (7, 2), "b": (5,), "c": ()}
STEPS = 40
STREAM = {k: np.float32(RANDOM.normal(0.3, 1, (STEPS, *s))) for k, s in SHAPES.items()}
STREAM["a"][:2] = 0  # agrees with nothing before the third step
STREAM["b"][5], STREAM["c"][7] = 0, np.inf
PARAMS = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
KEY = jax.random.key(5)


def run(optimizer, stream=STREAM):
    @jax.jit
    def over(stream):
        def step(state, update):
            update, state = optimizer.update(update, state, PARAMS)
            return state, (update, state)

        return jax.lax.scan(step, optimizer.init(PARAMS), stream)

    return over(stream)


def scores(mu, beta, tau):
    """(steps, leaves) of a plain loop in float64."""
    out = []
    momentum = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    score = dict.fromkeys(SHAPES, 0.0)
    for t in range(STEPS):
        for name in SHAPES:
            g = np.float64(STREAM[name][t])
            if not np.isfinite(g).all() or not g.any():
                continue
            m = momentum[name] = mu * momentum[name] + (1 - mu) * g
            cosine = (m * g).sum() / math.sqrt((m * m).sum() * (g * g).sum())
            now = 1 / (1 + math.exp(-cosine / tau))
            past = score[name]
            score[name] = beta * past + (1 - beta) * now if past else now
        out.append(list(score.values()))
    return np.array(out)


def test_equals_a_plain_loop():
    tx = co.magma(
        optax.sgd(0.5), KEY, survival=0.7, temperature=1.5, momentum=0.8, decay=0.6
    )
    end, (steps, states) = run(tx)
    expected = scores(0.8, 0.6, 1.5)
    np.testing.assert_allclose(states.alignment, expected, rtol=1e-5)  # sums of 14
    for i, name in enumerate(SHAPES):
        taken = np.asarray(steps[name]).reshape(STEPS, -1)
        given = -0.5 * STREAM[name].reshape(STEPS, -1)
        usable = np.isfinite(given).all(1) & (given != 0).all(1) & (taken != 0).any(1)
        ratios = taken[usable] / given[usable]
        assert 0.3 * STEPS < usable.sum() < STEPS  # p = 0.7, of 40: four deviations
        np.testing.assert_allclose(
            ratios, np.broadcast_to(expected[usable, i, None], ratios.shape), rtol=1e-5
        )
    assert int(end.step) == STEPS


def test_the_optimizer_goes_on_as_if_nothing_were_masked():
    stream = {name: np.where(np.isfinite(x), x, 1) for name, x in STREAM.items()}
    end, _ = run(co.magma(optax.adam(0.1), KEY, survival=0.0), stream)
    plain = optax.adam(0.1)

    def step(state, update):
        return plain.update(update, state, PARAMS)[1], None

    expected, _ = jax.jit(
        lambda stream: jax.lax.scan(step, plain.init(PARAMS), stream)
    )(stream)
    jax.tree.map(np.testing.assert_array_equal, end.inner, expected)


def test_survival_is_the_share_of_leaves_that_step():
    _, (_, states) = run(co.magma(optax.sgd(1.0), KEY))
    # 120 fair draws: five standard deviations are 0.23
    assert abs(float(states.kept.mean()) - 0.5) < 0.23
    _, (_, all_of_them) = run(co.magma(optax.sgd(1.0), KEY, survival=1.0))
    np.testing.assert_array_equal(all_of_them.kept, 1)


def test_a_draw_depends_on_the_key_and_the_step():
    first, again = (run(co.magma(optax.sgd(1.0), KEY))[1][0]["b"] for _ in range(2))
    other = run(co.magma(optax.sgd(1.0), jax.random.key(6)))[1][0]["b"]
    np.testing.assert_array_equal(first, again)
    assert np.any(np.asarray(first) != np.asarray(other))


@pytest.mark.parametrize("name", ["survival", "temperature", "momentum", "decay"])
def test_what_is_out_of_range(name):
    with pytest.raises(ValueError, match=f"`{name}` must be .*; got -1"):
        co.magma(optax.sgd(1.0), KEY, **{name: -1})


def test_rows_are_refused():
    tx = co.magma(optax.sgd(1.0), KEY)
    with pytest.raises(ValueError, match="reducer"):
        tx.update(jnp.ones((4, 2)), tx.init(jnp.ones(2)), jnp.ones(2))
