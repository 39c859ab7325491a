"""Noise: how much, how often, and that it is the same wherever rows come from.

Keys are fixed, so that no test fails by chance; what is said of chances is how likely a
right library would be to fail with another key.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import consensus_optax as co
from tests._stacks import first_update
from tests.engines.test_sharded import mesh_of

KEY = jax.random.key(7)
SHAPES = {"a": (40, 50), "b": (2000,)}
PARAMS = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}


def zeros(num_rows, dtype=jnp.float32):
    return {name: jnp.zeros((num_rows, *s), dtype) for name, s in SHAPES.items()}


def flat(update):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(update)])


def noise_of_steps(rule, num_steps, weights=None):
    """What comes out of zeros, (num_steps, 4000)."""

    def step(state, _):
        update, state = rule.update(zeros(2), state, PARAMS, weights=weights)
        return state, update

    run = jax.jit(lambda: jax.lax.scan(step, rule.init(PARAMS), length=num_steps)[1])
    leaves = [np.asarray(x, float).reshape(num_steps, -1) for x in run().values()]
    return np.concatenate(leaves, 1)


def test_noise_has_the_stated_variance_and_is_independent():
    """Over steps, leaves and places: correlations and a sum of squares are near normal.

    Within 5 deviations each: exceeded by chance with probability 6e-7, of about 200
    numbers with 1.2e-4.
    """
    rule = co.private_sum(3.0, divisor=12.0, noise_multiplier=2.0, key=KEY)
    noise = noise_of_steps(rule, 16) / (2.0 * 3.0 / 12.0)
    count = noise.size
    assert abs(noise.mean()) < 5 / np.sqrt(count)
    assert abs((noise**2).mean() - 1) < 5 * np.sqrt(2 / count)
    assert abs((noise**4).mean() - 3) < 5 * np.sqrt(96 / count)  # of a normal number
    apart = np.concatenate([noise[:, :2000], noise[:, 2000:]])  # (32, 2000)
    correlations = apart @ apart.T / 2000
    off = np.abs(correlations[np.triu_indices(32, 1)])
    assert off.max() < 5 / np.sqrt(2000)
    shifted = (apart[:, 1:] * apart[:, :-1]).mean(1)
    assert np.abs(shifted).max() < 5 / np.sqrt(2000)


def test_an_empty_batch_is_as_noisy_as_any():
    rule = co.private_sum(1.0, divisor=1.0, noise_multiplier=1.0, key=KEY)
    nobody = noise_of_steps(rule, 2, weights=jnp.zeros(2))
    np.testing.assert_array_equal(nobody, noise_of_steps(rule, 2))
    update, state = first_update(rule, jnp.full((3, 5), jnp.nan))
    assert np.isfinite(update).all()
    assert update.all()
    assert state.consensus_ready
    assert (state.num_present, state.num_nonfinite) == (0, 3)


def test_noise_moves_on_with_the_step_that_a_checkpoint_keeps():
    rule = co.private_sum(1.0, divisor=1.0, noise_multiplier=1.0, key=KEY)
    later = rule.init(PARAMS)._replace(step=jnp.int32(3))
    update, _ = jax.jit(rule.update)(zeros(2), later, PARAMS)
    np.testing.assert_array_equal(flat(update), noise_of_steps(rule, 4)[3])


def separate_rows(num_rows):
    """Rows (B, P) that share no coordinate, so that adding them rounds nothing."""
    random = np.random.default_rng(3)
    own = random.normal(size=(num_rows, 5)) * 10.0 ** random.integers(
        -2, 2, (num_rows, 1)
    )
    rows = np.zeros((num_rows, num_rows, 5))
    rows[np.arange(num_rows), np.arange(num_rows)] = own
    return jnp.asarray(rows.reshape(num_rows, -1), jnp.float32)


def loss(params, batch):
    """Linear: the gradient of a row is the row."""
    return jnp.vdot(params, batch[0])


def across_devices(reducer, num_devices, rows, weights, size=None):
    params = jnp.zeros(rows.shape[1:], rows.dtype)
    sharded = co.sharded(reducer, "data")

    def step(rows, weights):
        state = reducer.init(params)
        if size is None:
            return sharded.update(rows, state, params, weights=weights)
        fused = co.value_and_reduced_grad(loss, sharded, microbatch_size=size)
        return fused(params, rows, state=state, weights=weights)[1:]

    mesh = mesh_of(num_devices)
    run = jax.shard_map(step, mesh=mesh, in_specs=P("data"), out_specs=P())
    return jax.jit(run)(rows, weights)


WAYS = {
    "microbatches of 1": (None, 1),
    "microbatches of 5": (None, 5),
    "a mesh of 8": (8, None),
    "a mesh of 2": (2, None),
    "microbatches of 3 on a mesh of 4": (4, 3),
}


AUTOMATIC = ("automatic", "microbatches of 3 on a mesh of 4")
LATER = ("microbatches of 1", "a mesh of 2")


def ways():
    """All with a threshold, one automatically; two of them where CI asks for them."""
    for way in WAYS:
        marks = pytest.mark.slow if way in LATER else ()
        yield pytest.param("threshold", way, marks=marks)
    yield AUTOMATIC


@pytest.mark.slow
@pytest.mark.parametrize(("how", "way"), [*ways()])
def test_every_way_clips_the_same_rows_and_adds_one_noise(how, way):
    """Rows and noise are the same to rounding, counts and who is clipped exactly."""
    devices, size = WAYS[way]
    rows, weights = separate_rows(16), jnp.ones(16).at[3].set(0)
    rows = rows.at[5, 2].set(jnp.inf)
    options = {"divisor": 8.0, "noise_multiplier": 0.5, "key": KEY, "clipping": how}
    rule = co.private_sum(1.0, **options)
    wanted, known = first_update(rule, rows, weights=weights)
    if devices:
        got, state = across_devices(rule, devices, rows, weights, size)
    else:
        fused = co.value_and_reduced_grad(loss, rule, microbatch_size=size)
        params = jnp.zeros(rows.shape[1])
        given = {"state": rule.init(params), "weights": weights}
        _, got, state = jax.jit(fused)(params, rows, **given)
    # norms are added in another order, and noise of up to 0.3 comes from another loop
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-7)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(known), strict=True):
        np.testing.assert_array_equal(x, y)
    assert 0 < known.rule_state.num_clipped < 14


@pytest.mark.parametrize("rows_each", [1, 4])
def test_noise_on_a_mesh_is_added_before_anything_is_rounded_to_bfloat16(rows_each):
    """Sums of bfloat16 rows that bfloat16 cannot hold, in integers: all exact."""
    random = np.random.default_rng(4)
    rows = jnp.asarray(random.integers(200, 256, (4 * rows_each, 400)), jnp.bfloat16)
    rule = co.private_sum(1e6, divisor=1.0, noise_multiplier=1e-6, key=KEY)
    ones = jnp.ones(len(rows))
    noisy, _ = across_devices(rule, 4, rows, ones)
    assert noisy.dtype == jnp.bfloat16
    total = np.asarray(rows, np.float32).sum(0)
    key = jax.random.fold_in(jax.random.fold_in(KEY, 0), 0)
    wanted = jnp.asarray(total) + jax.random.normal(key, (400,))
    np.testing.assert_array_equal(noisy, wanted.astype(jnp.bfloat16))
    assert (total != np.asarray(jnp.asarray(total, jnp.bfloat16), np.float32)).any()


@pytest.mark.parametrize("inside", [False, True])
def test_parts_of_a_parameter_have_their_own_part_of_the_noise(inside):
    """Cut along another mesh axis: as whole, where equal parts would be one noise."""
    rule = co.private_sum(1.0, divisor=1.0, noise_multiplier=1.0, key=KEY)
    rows, params = jnp.zeros((4, 6, 4)), jnp.zeros((6, 4))
    mesh, spec = mesh_of(2, 2, names=("data", "model")), P(None, "model")
    across = co.sharded(rule, "data", param_specs=spec, mesh=mesh)
    if inside:
        update = lambda rows: across.update(
            rows, rule.init(params[:, :2]), params[:, :2]
        )[0]
        update = jax.shard_map(
            update, mesh=mesh, in_specs=P("data", None, "model"), out_specs=spec
        )
    else:
        update = lambda rows: across.update(rows, rule.init(params), params)[0]
    got, wanted = jax.jit(update)(rows), first_update(rule, rows)[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)  # in another loop


def test_nothing_may_select_or_mix_rows_ahead_of_the_noise():
    rule = co.private_sum(1.0, divisor=1.0, noise_multiplier=1.0, key=KEY)
    for compose in (
        lambda: co.among(co.cosine_filter(), rule),
        lambda: co.among(rule, co.mean()),
        lambda: co.after(co.bucketing(2, KEY), rule),
        lambda: co.ema_weights(rule, 4),
    ):
        with pytest.raises(ValueError, match=r"noise|eighting"):
            compose()


def test_noise_is_never_negative_or_given_twice():
    with pytest.raises(ValueError, match="`noise_multiplier` must be in"):
        co.private_sum(1.0, divisor=1.0, noise_multiplier=-1.0, key=KEY)
    with pytest.raises(ValueError, match="`per_leaf` must be False"):
        co.private_sum(
            co.quantile_norm(1.0, expected_rows=9),
            divisor=1.0,
            noise_multiplier=1.0,
            key=KEY,
            per_leaf=True,
        )


def test_schedules_of_norm_and_noise_are_those_of_the_step():
    rule = co.private_sum(
        lambda step: 1 + jnp.asarray(step, jnp.float32),
        noise_multiplier=lambda step: jnp.where(step == 0, 1.0, 10.0),
        divisor=1.0,
        key=KEY,
    )
    fixed = co.private_sum(1.0, divisor=1.0, noise_multiplier=1.0, key=KEY)
    scales = noise_of_steps(rule, 2) / noise_of_steps(fixed, 2)
    np.testing.assert_allclose(scales[0], 1, rtol=1e-6)  # two products
    np.testing.assert_allclose(scales[1], 20, rtol=1e-6)
