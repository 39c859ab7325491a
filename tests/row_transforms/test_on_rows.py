"""optax transformations of every row: against a loop over the rows."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from tests._stacks import B, factored

pytestmark = pytest.mark.standard_promotion  # optax mixes its counts with floats

TRANSFORMATIONS = {
    "scale": optax.scale(0.5),
    "clip": optax.clip(1.0),
    "clip_by_global_norm": optax.clip_by_global_norm(2.0),
    "centralize": optax.centralize(),
    "clip_by_block_rms": optax.clip_by_block_rms(0.5),
    "add_decayed_weights": optax.add_decayed_weights(0.1),
    "adaptive_grad_clip": optax.adaptive_grad_clip(0.1),
    "schedule": optax.scale_by_schedule(lambda step: 1.0 + step),
    "masked": optax.masked(optax.clip(1.0), lambda tree: jax.tree.map(jnp.ndim, tree)),
    "chain": optax.chain(optax.clip(1.0), optax.scale_by_sign()),
}


@pytest.mark.slow
def test_row_by_row_as_in_a_loop():
    rows, params, _ = factored()
    dense = co.materialize(rows)

    def ours(rows):
        each = {name: co.on_rows(tx) for name, tx in TRANSFORMATIONS.items()}
        return {n: tx.update(rows, tx.init(params), params) for n, tx in each.items()}

    def theirs(row):
        every = TRANSFORMATIONS.items()
        return {n: tx.update(row, tx.init(params), params) for n, tx in every}

    both, alone = jax.jit(ours)(rows), jax.jit(theirs)
    for i in range(B):
        wanted = alone(jax.tree.map(operator.itemgetter(i), dense))
        for name in TRANSFORMATIONS:
            row = jax.tree.map(operator.itemgetter(i), both[name][0])
            close = lambda x, y: np.testing.assert_allclose(  # sums of 15, in bfloat16
                np.asarray(x, float), np.asarray(y, float), rtol=2**-6, atol=1e-5
            )
            jax.tree.map(close, row, wanted[name][0])
            assert jax.tree.leaves(both[name][1]) == jax.tree.leaves(wanted[name][1])


def test_rows_that_are_broken_are_left_to_the_reducer():
    """Clipping would make a sound row of an infinite one."""
    rows = {"a": jnp.array([[jnp.inf], [2.0]]), "b": jnp.array([[1.0], [3.0]])}
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    tx = optax.chain(co.on_rows(optax.clip(1.5)), co.mean())
    update, state = tx.update(rows, tx.init(params), params)
    assert (update["a"].tolist(), update["b"].tolist()) == ([1.5], [1.5])
    assert state[1].num_nonfinite == 1


def test_leaves_without_gradient_pass():
    rows = {"w": jnp.ones((B, 4)), "count": jnp.ones((B,), jnp.int32), "no": None}
    params = {"w": jnp.ones(4), "count": jnp.ones((), jnp.int32), "no": None}
    decay = co.on_rows(optax.add_decayed_weights(1.0))
    result, _ = decay.update(rows, decay.init(params), params)
    assert result["count"].tolist() == [1] * B
    assert result["w"].tolist() == [[2.0] * 4] * B
    counts = {"count": rows["count"]}
    result, _ = decay.update(counts, decay.init(counts), {"count": params["count"]})
    assert result is counts


@pytest.mark.parametrize(
    "tx",
    [
        *(optax.trace(0.9), optax.adam(0.1), optax.zero_nans(), optax.ema(0.9)),
        *(optax.add_noise(1.0, 0.0, jax.random.key(0)), optax.apply_every(2)),
        optax.GradientTransformation(lambda params: jnp.zeros(2, int), optax.identity),
    ],
)
def test_a_memory_is_an_error(tx):
    params = {"w": jnp.zeros(2)}
    with pytest.raises(ValueError, match="`transformation` must have no state but cou"):
        co.on_rows(tx).init(params)


def test_what_is_no_transformation_is_an_error():
    with pytest.raises(ValueError, match="`transformation` must be an optax transform"):
        co.on_rows(optax.clip)


def test_thresholds_that_change_go_around():
    schedule = lambda step: 1.0 + step
    tx = optax.inject_hyperparams(lambda c: co.on_rows(optax.clip(c)))(schedule)
    rows, params = jnp.array([[9.0], [0.5]]), jnp.zeros(1)
    first, state = tx.update(rows, tx.init(params), params)
    second, _ = tx.update(rows, state, params)
    assert (first.tolist(), second.tolist()) == ([[1], [0.5]], [[2], [0.5]])


def test_extra_arguments_reach_the_transformation():
    def update(updates, state, params=None, *, factor, **extra):
        return jax.tree.map(lambda g: factor * g, updates), state

    tx = co.on_rows(optax.GradientTransformationExtraArgs(lambda params: (), update))
    rows = jnp.array([[1.0], [2.0]])
    assert tx.update(rows, (), jnp.zeros(1), factor=3.0)[0].tolist() == [[3], [6]]
    assert tx.update(rows, (), None, factor=3.0)[0].tolist() == [[3], [6]]
