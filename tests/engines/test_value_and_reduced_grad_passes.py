"""How often a step computes its rows, where they are not held: counted as it runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import consensus_optax as co
from tests.engines.test_sharded import mesh_of

LAYERS, WIDTH, ROWS = 3, 8, 6
PARAMS = jax.random.normal(jax.random.key(0), (LAYERS, WIDTH, WIDTH)) / 2
X = jax.random.normal(jax.random.key(1), (ROWS, 4, WIDTH))
BAD = X.at[2].set(jnp.inf)
ZERO = X.at[2].set(0)  # as is the gradient
WAYS = {
    "microbatches": {"microbatch_size": 2},
    "one left over": {"microbatch_size": 5},
    "backward": {"hold_rows": False},
}
CLIP = co.clip_examples(0.1)
PRIVATE = {"divisor": 3.0, "noise_multiplier": 1.0, "key": jax.random.key(0)}
ADAPTIVE = co.quantile_norm(0.1, expected_rows=6, count_stddev=1.0)
# Passes in microbatches and in the backward pass; of sound rows, and with a bad one.
RULES = {
    "mean": (co.mean(), (1, 1), (1, 2)),
    "random weights": (co.random_weights(jax.random.key(0)), (1, 2), (1, 2)),
    "a factor": (co.chain(co.scale_examples(0.5), co.mean()), (1, 1), (1, 2)),
    "losses": (co.keep_smallest_losses(3), (2, 2), (2, 2)),
    "norms": (co.normalized_mean(), (1, 1), (2, 2)),
    "norms of others": (co.comparative_elimination(1), (2, 2), (2, 2)),
    "private": (co.private_sum(ADAPTIVE, **PRIVATE), (1, 1), (2, 2)),
    "by leaf": (
        co.chain(co.normalize_examples(), co.clipped_sum(0.1, per_leaf=True)),
        (1, 1),
        (3, 3),
    ),
    "clipped": (co.chain(CLIP, co.mean()), (1, 1), (2, 2)),
    "scheduled": (
        co.chain(
            co.clip_examples(lambda step: 0.3 / step.astype(jnp.float32)), co.mean()
        ),
        (1, 1),
        (2, 2),
    ),
    "clipped, norms": (co.chain(CLIP, co.normalized_mean()), (1, 1), (3, 3)),
    "clipped, pairs": (co.chain(CLIP, co.cosine_filter(1.0)), (4, 4), (3, 3)),
    "thrice": (
        co.chain(CLIP, co.scale_examples(0.5), co.normalize_examples(), co.mean()),
        (1, 1),
        (3, 3),
    ),
    "clipped, fold": (co.chain(CLIP, co.sign_consensus()), (1, 1), (2, 2)),
    "clipped, columns": (co.chain(CLIP, co.median()), (1, 1), (2, 2)),
    "among": (
        co.chain(CLIP, co.among(co.keep_smallest_losses(3), co.sign_consensus())),
        (2, 2),
        (3, 3),
    ),
}


def passes(name, x, way, devices=None):
    """Times that the loss of a row was computed, to the number of rows; the update."""
    run, count = counting(name, tuple(way.items()), devices)
    count[0] = 0
    out = jax.block_until_ready(run(x))
    jax.effects_barrier()
    return count[0] / ROWS, out


@functools.cache
def counting(name, way, devices):
    """A step of a rule of ``RULES``, and where it counts."""
    rule, count = RULES[name][0], [0]

    def counted(_):
        count[0] += 1

    def loss(params, x):
        y, _ = jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, params)
        jax.debug.callback(counted, y[0, 0, 0])
        return jnp.mean(y**2)

    face = co.sharded(rule, "data") if devices else rule
    step = co.value_and_reduced_grad(loss, face, **dict(way))
    state = rule.init(PARAMS)._replace(step=jnp.int32(3))
    run = lambda x: step(PARAMS, x, state=state)
    if devices:
        specs = {"in_specs": PartitionSpec("data"), "out_specs": PartitionSpec()}
        run = jax.shard_map(run, mesh=mesh_of(devices), **specs)
    return jax.jit(run), count


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RULES)
def test_rows_are_computed_no_more_often_than_needed(name, way):
    _, in_microbatches, backward = RULES[name]
    numbers = backward if way == "backward" else in_microbatches
    sound, broken = numbers
    for x, wanted in ((X, sound), (ZERO, sound), (BAD, broken)):
        found, (value, update, state) = passes(name, x, WAYS[way])
        padded = 2 * 5 / ROWS if way == "one left over" else 1
        assert 1 <= found <= wanted * padded
        _, expected = passes(name, x, {"hold_rows": True})
        eps = np.finfo(np.float32).eps  # sums of rows and terms in another order
        close = functools.partial(np.testing.assert_allclose, rtol=0)
        size = np.abs(expected[1]).max()
        close(update, expected[1], atol=8 * ROWS * eps * size)
        close(value, expected[0], atol=8 * eps * float(expected[0]))
        assert state.num_nonfinite == expected[2].num_nonfinite == int(x is BAD)
        for own, other in zip(*map(jax.tree.leaves, (state, expected[2])), strict=True):
            close(
                own, other, atol=8 * eps
            )  # shares of rows; rows and steps are counted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean", "private", "clipped, norms"])
def test_nor_on_a_mesh(name):
    """Microbatches of devices, which tell each other what all rows weigh."""
    for x in (X, BAD):
        found, (_, update, state) = passes(name, x, {"microbatch_size": 1}, 2)
        assert found == 1
        _, expected = passes(name, x, {"hold_rows": True})
        size, eps = np.abs(expected[1]).max(), np.finfo(np.float32).eps
        # sums of rows and terms in another order
        np.testing.assert_allclose(
            update, expected[1], rtol=0, atol=8 * ROWS * eps * size
        )
        assert state.num_nonfinite == int(x is BAD)


@pytest.mark.parametrize("way", [{}, *WAYS.values()], ids=["held", *WAYS])
def test_aux_may_be_of_any_dtype(way):
    """Random keys, flags and half-precision numbers come back as they are."""

    def loss(w, x, key):
        aux = {"key": key, "flag": x[0, 0] > 0, "half": x[0].astype(jnp.bfloat16)}
        return jnp.mean((x @ w) ** 2), aux

    keys = jax.random.split(jax.random.key(0), ROWS)
    step = co.value_and_reduced_grad(
        loss, co.mean(), has_aux=True, prng_argnum=2, **way
    )
    state = co.mean().init(jnp.ones(WIDTH))
    (_, aux), _, _ = step(jnp.ones(WIDTH), X[:, 0], keys[0], state=state)
    assert aux["key"].dtype == keys.dtype
    assert len({int(x[-1]) for x in jax.random.key_data(aux["key"])}) == ROWS
    np.testing.assert_array_equal(aux["flag"], X[:, 0, 0] > 0)
    assert aux["half"].dtype == jnp.bfloat16


@pytest.mark.parametrize("way", WAYS)
def test_derivatives_of_an_update_can_be_taken_backward(way):
    """As those of rows in memory: for a step that is learned itself."""
    loss = lambda w, x: jnp.mean((x @ w) ** 3)
    rule = co.chain(co.clip_examples(0.1), co.mean())

    def gain(w, way):
        step = co.value_and_reduced_grad(loss, rule, **way)
        return step(w, X, state=rule.init(w))[1].sum()

    w = jnp.linspace(0.1, 1, WIDTH)
    eps = np.finfo(np.float32).eps
    got, wanted = jax.grad(gain)(w, WAYS[way]), jax.grad(gain)(w, {})
    np.testing.assert_allclose(
        got, wanted, rtol=0, atol=64 * eps * np.abs(wanted).max()
    )
