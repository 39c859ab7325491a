"""The probe: passes rows on, smooths what it sees, skips what it cannot see."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from consensus_optax import diagnostics

PARAMS = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2), "count": jnp.zeros((), jnp.int32)}


def some_rows(seed, count=5):
    random = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(0.5 + random.normal(size=shape), jnp.float32)
    return {
        "w": normal(count, 3, 2),
        "b": normal(count, 2),
        "count": jnp.zeros((count,), jnp.int32),
    }


def test_shows_what_the_functions_say_of_the_first_step():
    rows, probe = some_rows(0), co.probe(group_size=4)
    out, state = jax.jit(probe.update)(rows, probe.init(PARAMS))
    state = state.rule_state
    jax.tree.map(np.testing.assert_array_equal, out, rows)
    gramian = diagnostics.gramian(rows)
    estimate = diagnostics.noise_scale(gramian, group_size=4)
    wanted = {
        "coherence": diagnostics.coherence(gramian),
        "conflicting_share": diagnostics.conflicting_share(gramian),
        "cosine_quantiles": diagnostics.cosine_quantiles(gramian),
        **estimate._asdict(),
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(getattr(state, name), value, rtol=1e-4, atol=1e-5)
    leaves = diagnostics.leaf_agreement(rows)
    for name, value in leaves.items():
        np.testing.assert_allclose(state.leaf_coherence[name], value, rtol=1e-5)


def test_smooths_numerator_and_denominator_apart():
    probe, decay = co.probe(0.7), 0.7
    state, sums, mass = probe.init(PARAMS), np.zeros(2), 0.0
    for seed in range(4):
        rows = some_rows(seed)
        _, state = probe.update(rows, state)
        found = diagnostics.noise_scale(diagnostics.gramian(rows))
        sums = decay * sums + (1 - decay) * np.array(found[:2])
        mass = decay * mass + 1 - decay
    state = state.rule_state
    np.testing.assert_allclose(state.gradient_squared, sums[0] / mass, rtol=1e-4)
    np.testing.assert_allclose(state.noise_trace, sums[1] / mass, rtol=1e-4)
    np.testing.assert_allclose(state.noise_scale, sums[1] / sums[0], rtol=1e-4)


def test_a_step_with_one_row_changes_no_average():
    probe = co.probe()
    _, before = probe.update(some_rows(0), probe.init(PARAMS))
    for weights in (jnp.array([0.0, 1, 0, 0, 0]), jnp.zeros(5)):
        _, after = probe.update(some_rows(1), before, weights=weights)
        assert int(after.step) == 2
        same = after._replace(step=before.step)
        jax.tree.map(np.testing.assert_array_equal, same, before)


def test_a_broken_row_is_absent():
    probe, rows = co.probe(), some_rows(0)
    rows["b"] = rows["b"].at[1].set(jnp.nan)
    _, broken = probe.update(rows, probe.init(PARAMS))
    weights = jnp.array([1.0, 0, 1, 1, 1])
    _, absent = probe.update(some_rows(0), probe.init(PARAMS), weights=weights)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), broken, absent
    )


def test_lazy_rows_in_a_chain_with_fixed_state():
    random = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    lazy = co.OuterProduct(normal(4, 1, 3), normal(4, 1, 2), row_shape=(3, 2))
    tx, params = optax.chain(co.probe(), co.mean()), {"w": jnp.zeros((3, 2))}
    start = tx.init(params)
    update, state = jax.jit(tx.update)({"w": lazy}, start, params)
    np.testing.assert_allclose(update["w"], lazy.materialize().mean(0), rtol=1e-5)
    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert types(start) == types(state)
    wanted = diagnostics.coherence(diagnostics.gramian(lazy.materialize()))
    got = optax.tree.get(state[0], "leaf_coherence")["w"]
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_leaves_without_gradient_alone_pass():
    probe, params = co.probe(), {"count": jnp.zeros((), jnp.int32)}
    rows = {"count": jnp.zeros((3,), jnp.int32)}
    _, state = probe.update(rows, probe.init(params))
    assert int(state.step) == 1


def test_rejects_a_decay_of_one():
    with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\); got 1"):
        co.probe(1.0)


def test_state_may_be_donated():
    probe, rows = co.probe(), some_rows(0)
    update = jax.jit(probe.update, donate_argnums=1)
    state = probe.init(PARAMS)
    for _ in range(2):
        _, state = update(rows, state)
    assert int(state.step) == 2


def test_norms_tell_coherence_and_noise_of_all_and_of_groups():
    groups = {"w": "kernel", "b": "bias", "count": "bias"}
    full, norms = co.probe(groups=groups), co.probe(reads="norms", groups=groups)
    rows, weights = some_rows(0), jnp.array([1.0, 0, 2, 0.5, 1])
    state = full.update(rows, full.init(PARAMS), weights=weights)[1].rule_state
    other = norms.update(rows, norms.init(PARAMS), weights=weights)[1].rule_state
    assert other.conflicting_share is other.group_conflicting_share is None
    told = other._asdict()
    for name, value in state._asdict().items():
        if told[name] is not None:  # sums of 8 products in another order
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
                value,
                told[name],
            )
    kernel = diagnostics.gramian(rows["w"])
    wanted = diagnostics.conflicting_share(kernel, weights)
    np.testing.assert_allclose(state.group_conflicting_share["kernel"], wanted)
    wanted = diagnostics.noise_scale(kernel, weights).noise_scale
    np.testing.assert_allclose(state.group_noise_scale["kernel"], wanted, rtol=1e-5)
    np.testing.assert_allclose(state.group_coherence["bias"], state.leaf_coherence["b"])


def test_every_leaf_is_a_group_and_others_may_be_left_out():
    moving = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    probe = co.probe(groups=diagnostics.leaf_names, mask=moving)
    rows = some_rows(0)
    state = probe.update(rows, probe.init(PARAMS))[1].rule_state
    assert list(state.group_coherence) == ["['w']"]
    alone = co.probe().update(rows["w"], co.probe().init(PARAMS["w"]))[1].rule_state
    assert state.coherence == alone.coherence
    assert state.leaf_coherence["b"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reads": "norm"}, "Did you mean 'norms'"),
        ({"groups": {"w": "a"}}, "`groups` must be a tree like the parameters"),
        ({"mask": False}, "`mask` must have a leaf to look at; got none"),
    ],
)
def test_says_what_is_wrong_with_options(options, message):
    with pytest.raises(ValueError, match=message):
        co.probe(**options).init(PARAMS)
