"""The gate on updates by their own past, against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests._reference import dot, norm

RANDOM = np.random.default_rng(8)
SHAPES = {"a": (3, 2), "b": (5,), "c": ()}
STEPS = 30
STREAM = {
    name: np.float32(RANDOM.normal(0.3, 1, (STEPS, *shape)))
    for name, shape in SHAPES.items()
}
PARAMS = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}


def loop(scope, decay, threshold):
    """Flat updates of all steps and the share suppressed, leaf by leaf or together."""
    groups = [["a"], ["b"], ["c"]] if scope == "leaf" else [["a", "b", "c"]]
    average = {name: [0.0] * STREAM[name][0].size for name in SHAPES}
    out, suppressed = [], []
    for t in range(STEPS):
        now = {name: STREAM[name][t].ravel().tolist() for name in SHAPES}
        result, zeroed = dict(now), 0
        for group in groups:
            u = [x for name in group for x in now[name]]
            m = [x for name in group for x in average[name]]
            scale = norm(u) * norm(m)
            if scale and 1 - dot(u, m) / scale > threshold:
                zeroed += len(group)
                result |= {name: [0.0] * len(now[name]) for name in group}
        for name, u in now.items():
            m = average[name]
            average[name] = [
                decay * x + (1 - decay) * y for x, y in zip(m, u, strict=True)
            ]
        out.append([x for leaf in result.values() for x in leaf])
        suppressed.append(zeroed / 3)
    return np.array(out), suppressed


@pytest.mark.parametrize("scope", ["leaf", "model"])
def test_equals_a_plain_loop(scope):
    gate = co.ema_agreement(0.8, 0.9, scope)

    @jax.jit
    def run(stream):
        def step(state, update):
            update, state = gate.update(update, state)
            return state, (update, state.suppressed)

        return jax.lax.scan(step, gate.init(PARAMS), stream)[1]

    updates, suppressed = run(STREAM)
    flat = [np.asarray(updates[name]).reshape(STEPS, -1) for name in SHAPES]
    wanted, wanted_suppressed = loop(scope, 0.8, 0.9)
    np.testing.assert_array_equal(np.concatenate(flat, 1), wanted.astype(np.float32))
    np.testing.assert_allclose(suppressed, wanted_suppressed, rtol=1e-6)  # thirds
    assert 0 < np.mean(suppressed) < 1


def test_what_is_no_observation():
    """Empty updates pass, broken ones are zeroed; neither enters the average."""
    gate, params = co.ema_agreement(), jnp.zeros(2)
    state = gate.init(params)
    first, state = gate.update(jnp.array([1.0, 0.0]), state)
    assert first.tolist() == [1, 0]
    empty, after = gate.update(jnp.zeros(2), state)
    assert (empty.tolist(), float(after.suppressed)) == ([0, 0], 0)
    assert after.ema.tolist() == state.ema.tolist()
    broken, after = gate.update(jnp.array([jnp.nan, 1.0]), state)
    assert (broken.tolist(), float(after.suppressed)) == ([0, 0], 1)
    assert after.ema.tolist() == state.ema.tolist()


def test_the_average_of_bfloat16_updates_is_float32():
    gate, params = co.ema_agreement(0.999), jnp.zeros(1, jnp.bfloat16)
    state = gate.init(params)
    for _ in range(3):
        update, state = gate.update(jnp.full(1, 0.01, jnp.bfloat16), state)
    assert update.dtype == jnp.bfloat16
    assert state.ema.dtype == jnp.float32
    np.testing.assert_allclose(state.ema, 3e-5, rtol=0.01)  # 0.01 in bfloat16


def test_thresholds_may_be_schedules():
    gate = co.ema_agreement(
        decay=lambda step: 0.5, max_distance=lambda step: jnp.where(step < 2, 2.0, 0.1)
    )
    state, seen = gate.init(jnp.zeros(1)), []
    for sign in (1.0, -1.0, -1.0, 1.0):
        update, state = gate.update(jnp.full(1, sign), state)
        seen.append(float(update[0]))
    assert seen == [1, -1, -1, 0]


def test_leaves_without_gradient_pass():
    params = {"w": jnp.zeros(2), "count": jnp.zeros((), jnp.int32), "no": None}
    nothing = np.zeros((), jax.dtypes.float0)
    for none in (jnp.ones((), jnp.int32), nothing):
        gate = co.ema_agreement()
        state = gate.init(params)
        for sign, wanted in ((1.0, [1.0, 2.0]), (-1.0, [0.0, 0.0])):
            updates = {"w": sign * jnp.array([1.0, 2.0]), "count": none, "no": None}
            gated, state = gate.update(updates, state, params)
            assert gated["w"].tolist() == wanted
            assert gated["count"] is none
        assert state.suppressed == 1  # of the leaves that have a gradient


def test_the_same_direction_passes_the_strictest_threshold():
    gate, params = co.ema_agreement(max_distance=0.0), jnp.zeros(7)
    for row in np.random.default_rng(0).normal(size=(20, 7)):
        row = jnp.asarray(row, jnp.float32)
        _, state = gate.update(row, gate.init(params), params)
        assert gate.update(2 * row, state, params)[0].tolist() == (2 * row).tolist()
