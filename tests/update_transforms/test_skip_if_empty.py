"""An optimizer that stands still when nothing was agreed on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co

pytestmark = pytest.mark.standard_promotion  # optax mixes its counts with floats


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_equals_the_optimizer_on_the_other_steps_alone(name):
    """Moments, counts, schedules and decay know nothing of the empty steps."""
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    optimizer = {
        "adamw": optax.adamw(schedule, weight_decay=0.1),
        "sgd": optax.sgd(schedule, momentum=0.9, nesterov=True),
        "adafactor": optax.adafactor(schedule),
    }[name]
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    random = np.random.default_rng(2)
    fill = lambda p: jnp.float32(random.normal(size=(8, *p.shape)))
    updates = jax.tree.map(fill, params)
    empty = np.array([0, 1, 0, 0, 1, 1, 0, 0], bool)
    holes = jax.tree.map(
        lambda u: jnp.where(empty.reshape(-1, *[1] * (u.ndim - 1)), 0, u), updates
    )

    def run(tx, stream):
        def step(carry, update):
            params, state = carry
            update, state = tx.update(update, state, params)
            return (optax.apply_updates(params, update), state), None

        return jax.jit(jax.lax.scan, static_argnums=0)(
            step, (params, tx.init(params)), stream
        )[0]

    skipped_params, state = run(co.skip_if_empty(optimizer), holes)
    wanted = run(optimizer, jax.tree.map(lambda u: u[~empty], updates))
    got = (skipped_params, state.inner)
    jax.tree.map(  # two programs may be fused differently
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), got, wanted
    )
    assert state.skipped == 3


def test_passes_extra_arguments_on():
    seen = {}

    def update(updates, state, params=None, **extra):
        seen.update(extra)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    tx = co.skip_if_empty(inner)
    tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), value=3.0)
    assert seen == {"value": 3.0}
    plain = co.skip_if_empty(optax.identity())
    plain.update(jnp.ones(2), plain.init(jnp.ones(2)), value=3.0)


def test_one_entry_is_enough_to_move():
    tx = co.skip_if_empty(optax.sgd(1.0))
    params = {"w": jnp.ones((2, 2)), "count": jnp.ones((), jnp.int32)}
    updates = {"w": jnp.zeros((2, 2)).at[1, 1].set(1e-30), "count": jnp.int32(0)}
    result, state = tx.update(updates, tx.init(params), params)
    assert result["w"][1, 1] < 0
    assert state.skipped == 0
