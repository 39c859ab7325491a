"""What no way to the rows may change: held, in the backward pass, in microbatches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import consensus_optax as co

pytestmark = pytest.mark.slow

ROWS, M, N, DEVICES = 12, 8, 16, 4
HELD = {"hold_rows": True}
WAYS = {
    "held": HELD,
    "backward": {"hold_rows": False},
    "microbatches": {"microbatch_size": 4},
}
ways = pytest.mark.parametrize("how", WAYS)
RULES = {
    "fold": co.sign_consensus(),
    "mean": co.mean(),
    "clipped": co.clipped_sum(1.0, divisor=4.0),
    "gramian": co.cosine_filter(1.2),
    "columns": co.median(),
}
W = jnp.full((M, N), 0.1)
X = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, M)), jnp.float32)


def loss(w, x, frozen=None):
    x = x if frozen is None else x @ frozen
    return jnp.mean(jnp.sum(jnp.tanh(x @ w), -1) ** 2)


def mesh_of(kind, **sizes):
    count = np.prod([*sizes.values()])
    kinds, devices = (kind,) * len(sizes), jax.devices()[:count]
    return jax.make_mesh((*sizes.values(),), (*sizes,), kinds, devices=devices)


def of_one_device(rule, *args, **given):
    run = co.value_and_reduced_grad(loss, rule, **HELD)
    return run(W, *args, state=rule.init(W), **given)[1]


def close(got, wanted):  # sums of 12 rows in another order
    scale = float(jnp.abs(wanted).max())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * scale)


@ways
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("checked", [True, False])
def test_on_a_mesh_of_which_one_axis_is_manual(rule, checked, how):
    mesh, rule = mesh_of(AxisType.Auto, data=2, model=2), RULES[rule]
    size = {"microbatch_size": 2} if how == "microbatches" else WAYS[how]
    run = co.value_and_reduced_grad(loss, co.sharded(rule, "data"), **size)
    on_devices = jax.shard_map(
        lambda w, x: run(w, x, state=rule.init(w))[1],
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=P(),
        axis_names={"data"},
        check_vma=checked,
    )
    close(jax.jit(on_devices)(W, X), of_one_device(rule, X))


@ways
def test_what_there_is_for_every_row_is_that_of_all_rows(how):
    """Beside losses: what the rule of one's own calls scores."""
    weigh = lambda _, roster, state: (roster.extra["scores"] * roster.shares, state)
    rule = co.reducer(co.Weighting(weigh, reads="nothing"))
    face = co.sharded(rule, "data", per_row=("values", "scores"))
    size = {"microbatch_size": 1} if how == "microbatches" else WAYS[how]
    run = co.value_and_reduced_grad(loss, face, **size)
    scores = jnp.arange(float(ROWS))
    on_devices = jax.shard_map(
        lambda w, x, scores: run(w, x, state=rule.init(w), extra={"scores": scores})[1],
        mesh=mesh_of(AxisType.Auto, data=DEVICES),
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
    )
    wanted = of_one_device(rule, X, extra={"scores": scores})
    close(jax.jit(on_devices)(W, X, scores), wanted)


@ways
def test_losses_of_ones_own_are_what_rules_read(how):
    rule, values = co.keep_smallest_losses(2), jnp.arange(float(ROWS))[::-1]
    run = co.value_and_reduced_grad(loss, rule, **WAYS[how])
    update = run(W, X, state=rule.init(W), extra={"values": values})[1]
    close(update, of_one_device(co.mean(), X, weights=values < 2))


@ways
@pytest.mark.parametrize("rule", RULES)
def test_no_parameters_no_update(rule, how):
    of_batch = lambda params, x: jnp.mean(x)
    run = co.value_and_reduced_grad(of_batch, RULES[rule], **WAYS[how])
    value, update, state = run({}, X, state=RULES[rule].init({}))
    assert update == {}
    assert state.step == 1
    np.testing.assert_allclose(value, X.mean(), rtol=1e-5, atol=1e-6)


@ways
def test_what_all_rows_share_may_be_cut_as_rows_are(how):
    """On explicit axes: the frozen part of a model under FSDP."""
    mesh = mesh_of(AxisType.Explicit, data=DEVICES)
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
    frozen = jnp.eye(M) + 0.1
    rule = co.sharded(co.mean(), "data", mesh=mesh)
    run = co.value_and_reduced_grad(loss, rule, **WAYS[how])
    step = jax.jit(lambda w, x, *frozen: run(w, x, *frozen, state=rule.init(w))[1])
    for spec in ((None, "data"), ("data",)):
        got = step(put(W, None, "data"), put(X, "data"), put(frozen, *spec))
        close(got, of_one_device(co.mean(), X, frozen))


@ways
@pytest.mark.parametrize("spec", [(), (None, "data"), ("data",), (None, "model")])
def test_parameters_and_what_is_kept_like_them_stay(spec, how):
    mesh = mesh_of(AxisType.Auto, data=2, model=2)
    place, rule = NamedSharding(mesh, P(*spec)), co.previous_update_filter(1.5)
    face = co.sharded(rule, "data", mesh=mesh, param_specs=P(*spec))
    run = co.value_and_reduced_grad(loss, face, **WAYS[how])
    x = jax.device_put(X, NamedSharding(mesh, P("data")))

    @jax.jit
    def step(w, state):
        update, state = run(w, x, state=state)[1:]
        return w - 0.1 * update, state

    w = jax.device_put(W, place)
    state = face.init(w)
    for _ in range(2):
        w, state = step(w, state)
        previous = jax.tree.leaves(state.rule_state.previous)[0]
        assert w.sharding.is_equivalent_to(place, 2)
        assert previous.sharding.is_equivalent_to(place, 2)


@ways
def test_arrays_that_lie_nowhere_on_explicit_axes_are_told_of(how):
    mesh = mesh_of(AxisType.Explicit, data=DEVICES)
    rule = co.sharded(co.mean(), "data")
    run = co.value_and_reduced_grad(loss, rule, **WAYS[how])
    step = jax.jit(lambda w, x: run(w, x, state=rule.init(w))[1])
    given = np.asarray(W), np.asarray(X)
    with jax.set_mesh(mesh):
        if how == "held":
            close(step(*given), of_one_device(co.mean(), X))
            return
        with pytest.raises(ValueError, match=r"`jax.device_put\(batch"):
            step(*given)


@ways
@pytest.mark.parametrize("rule", RULES)
def test_what_overflows_as_it_travels_is_no_row(rule, how):
    mesh, rule = mesh_of(AxisType.Auto, data=DEVICES), RULES[rule]
    face = co.sharded(rule, "data", mesh=mesh, wire_dtype=jnp.float16)
    run = co.value_and_reduced_grad(linear, face, **WAYS[how])
    x, y = jnp.ones((ROWS, M)), jnp.ones((ROWS, N)).at[3].set(1e6)
    step = jax.jit(lambda w, batch: run(w, batch, state=rule.init(w))[1:])
    update, state = step(W, (x, y))
    one = rule.update(jnp.ones((ROWS - 1, M, N)), rule.init(W), W)[0]
    # rounded, of rows and updates, to ten digits
    np.testing.assert_allclose(update, one, rtol=2.0**-9)
    assert (int(state.num_present), int(state.num_nonfinite)) == (ROWS - 1, 1)


def linear(w, batch):
    x, y = batch
    return jnp.mean(jnp.sum((x @ w) * y, -1))


@ways
def test_no_row_has_more_than_its_share_as_it_travels(how):
    """The bound of a private sum is that of the rows that are added."""
    mesh = mesh_of(AxisType.Auto, data=DEVICES)
    given = {"divisor": 1.0, "noise_multiplier": 0.0, "key": jax.random.key(0)}
    rule = co.private_sum(1.0, **given)
    face = co.sharded(rule, "data", mesh=mesh, wire_dtype=jnp.bfloat16)
    run = co.value_and_reduced_grad(linear, face, **WAYS[how])
    rng = np.random.default_rng(1)
    draw = lambda size: jnp.asarray(rng.uniform(1, 2, (ROWS, size)), jnp.float32)
    step = jax.jit(
        lambda batch, weights: run(W, batch, state=rule.init(W), weights=weights)[1]
    )
    for turn in range(ROWS):
        batch = draw(M) * (1 + 2.0**-8 + 1e-5), draw(N)
        update = step(batch, (jnp.arange(ROWS) == turn).astype(jnp.float32))
        assert jnp.linalg.norm(update) <= 1
