"""In the place of jax_privacy's: the same numbers, its noise, its sensitivity."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from consensus_optax import privacy
from tests.engines.test_sharded import mesh_of

# Of what jax_privacy itself does.
pytestmark = [
    pytest.mark.standard_promotion,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {
    "w": jax.random.normal(KEYS[0], (6, 5)),
    "b": jnp.zeros(()),
    "v": jax.random.normal(KEYS[1], (5, 1)),
}
BATCH = jax.random.normal(KEYS[2], (12, 6)), jax.random.normal(KEYS[3], (12, 1))


def loss(params, x, y):
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return jnp.mean((hidden @ params["v"] - y) ** 2)


def with_aux(params, x, y):
    value = loss(params, x, y)
    return value, {"rows": x, "double": 2 * value}


@pytest.fixture(name="theirs")
def _theirs():
    pytest.importorskip("jax_privacy.noise_addition", reason="in the extra `peers`")
    return sys.modules["jax_privacy"]


OPTIONS = {
    "plain": {"l2_clip_norm": 1.0},
    "all": {"l2_clip_norm": 0.5, "return_values": True, "return_grad_norms": True},
    "unit": {"l2_clip_norm": 0.5, "rescale_to_unit_norm": True, "normalize_by": 4.0},
    "directions": {"l2_clip_norm": 0.0, "rescale_to_unit_norm": True},
    "nothing": {"l2_clip_norm": 0.0},
    "unclipped": {"l2_clip_norm": float("inf")},
    "scaled before": {
        "l2_clip_norm": 1.0,
        "pre_clipping_transform": lambda g: {"w": 0.1 * g["w"], "v": g["v"]},
        "return_grad_norms": True,
    },
    "one by one": {"l2_clip_norm": 0.5, "keep_batch_dim": False},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("size", [None, 4])
def test_gives_what_jax_privacy_gives(theirs, option, size):
    given = {"batch_argnums": (1, 2), "microbatch_size": size, **OPTIONS[option]}
    ours, known = (x.clipped_grad(loss, **given) for x in (privacy, theirs))
    padding = jnp.arange(12) % 5 == 1
    got, wanted = (
        jax.jit(f)(PARAMS, *BATCH, is_padding_example=padding) for f in (ours, known)
    )
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    if isinstance(got, tuple):  # of padding both give something
        keep = lambda aux: jax.tree.map(lambda x: x[~padding], aux)
        got, wanted = (got[0], keep(got[1])), (wanted[0], keep(wanted[1]))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert x.dtype == y.dtype
        # C is lowered by what rounding may add to a sum of 12 rows, 1e-5
        np.testing.assert_allclose(x, y, atol=3e-5 * np.abs(y).max(), rtol=0)
    for relation in ("ADD_OR_REMOVE_ONE", "REPLACE_ONE", "REPLACE_SPECIAL"):
        import dp_accounting

        relation = dp_accounting.NeighboringRelation[relation]
        assert ours.sensitivity(relation) == known.sensitivity(relation)
    assert isinstance(ours, type(known))


@pytest.mark.parametrize("size", [None, 5])
def test_aux_is_that_of_every_row_in_order(theirs, size):
    del theirs
    options = {"batch_argnums": (1, 2), "l2_clip_norm": 1.0, "microbatch_size": size}
    grad = privacy.clipped_grad(with_aux, has_aux=True, return_values=True, **options)
    _, aux = jax.jit(grad)(PARAMS, *BATCH)
    np.testing.assert_array_equal(aux.aux["rows"], BATCH[0])
    np.testing.assert_array_equal(aux.aux["double"], 2 * aux.values)
    assert aux.grad_norms is None
    wanted = jax.vmap(lambda x, y: loss(PARAMS, x[None], y[None]))(*BATCH)
    # a square of a difference of numbers of about 1
    np.testing.assert_allclose(aux.values, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_batches_may_be_sharded(theirs, kind):
    del theirs
    options = {"batch_argnums": (1, 2), "l2_clip_norm": 0.5, "return_values": True}
    mesh = mesh_of(4, kind=kind)
    along = jax.NamedSharding(mesh, PartitionSpec("data"))
    whole = jax.NamedSharding(mesh, PartitionSpec())
    batch, params = jax.device_put(BATCH, along), jax.device_put(PARAMS, whole)
    grad = jax.jit(privacy.clipped_grad(loss, **options))
    got, wanted = grad(params, *batch), grad(PARAMS, *BATCH)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        # sums of 12 rows in another order
        np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max(), rtol=0)


def test_its_matrix_factorizations_take_our_sums(theirs):
    """Noise of the second step is that of the first, less: together nearly none."""
    grad = privacy.clipped_grad(loss, batch_argnums=(1, 2), l2_clip_norm=1.0)
    sums = jax.jit(grad)(PARAMS, *BATCH)
    noise = theirs.noise_addition.matrix_factorization_privatizer(
        jnp.array([[1.0, 0.0], [-1.0, 1e-3]]),
        stddev=grad.sensitivity(),
        prng_key=jax.random.key(3),
    )
    state, total = noise.init(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
    for _ in range(2):
        update, state = noise.update(sums, state)
        total = jax.tree.map(jnp.add, total, update)
    for x, y in zip(jax.tree.leaves(total), jax.tree.leaves(sums), strict=True):
        # 5 deviations of 1e-3, for each of 36 numbers with probability 6e-7
        np.testing.assert_allclose(x, 2 * y, atol=5e-3)


def test_its_noise_is_scaled_to_our_sensitivity(theirs):
    """Within 5 deviations of a variance from 4000 numbers, by chance not in 6e-7."""
    of_zeros = lambda params, x: 0 * jnp.vdot(params, params) + 0 * x.sum()
    grad = privacy.clipped_grad(of_zeros, l2_clip_norm=3.0, normalize_by=4.0)
    params, batch = jnp.ones(4000), jnp.zeros((2, 1))
    noise = theirs.noise_addition.gaussian_privatizer(
        stddev=2.0 * grad.sensitivity(), prng_key=jax.random.key(3)
    )
    update, _ = noise.update(grad(params, batch), noise.init(params))
    assert float(update.std()) == pytest.approx(1.5, rel=5 / np.sqrt(8000))


@pytest.mark.slow
def test_its_accountants_say_what_ours_say(theirs):
    """Of noise that is told in units of our sensitivity, with what is cut off."""
    del theirs
    accounting = pytest.importorskip("jax_privacy.accounting")
    accountant = accounting.DpsgdTrainingAccountant(accounting.PldAccountantConfig())
    for size in (30, 100):
        sampling = privacy.PoissonSampling(100, 0.2, num_steps=3, max_size=size)
        of_run = accounting.DpParams(
            noise_multipliers=1.5,
            num_samples=100,
            delta=1e-5,
            batch_size=20,
            truncated_batch_size=None if size == 100 else size,
        )
        epsilon = accountant.compute_epsilon(3, of_run)
        ours = privacy.epsilon_of(1.5, sampling, delta=1e-5)
        assert ours == pytest.approx(epsilon, rel=1e-3)  # losses in steps of 1e-4
    z = accounting.calibrate_noise_multiplier(
        target_epsilon=2.0,
        accountant=accountant,
        batch_sizes=20,
        num_updates=3,
        num_samples=100,
        target_delta=1e-5,
    )
    whole = sampling._replace(max_size=100)
    assert 1.97 < privacy.epsilon_of(z, whole, delta=1e-5) <= 2.001  # to 0.01 of z


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_its_auditing_of_our_sums(theirs, broken):
    """A canary that is there or not is told apart as far as epsilon, and no farther.

    Its lower bound is wrong with probability 1e-6; noise that is a fifth of what was
    said is found out.
    """
    auditing = pytest.importorskip("jax_privacy.auditing")
    trials, delta, clip = 4000, 1e-3, 0.5
    grad = privacy.clipped_grad(loss, batch_argnums=(1, 2), l2_clip_norm=clip)
    stddev = grad.sensitivity() * (0.2 if broken else 1.0)
    # of one Gaussian mechanism with noise multiplier 1
    epsilon = privacy.epsilon_of(
        1.0, privacy.PoissonSampling(12, 1.0, num_steps=1, max_size=12), delta=delta
    )
    canary = jax.tree.map(lambda leaf: 50 * leaf[:1], BATCH)
    own = grad(PARAMS, *canary)

    def score(key, is_there):
        padding = jnp.arange(12) == jnp.where(is_there, 12, 0)
        batch = jax.tree.map(lambda x, y: x.at[0].set(y[0]), BATCH, canary)
        sums = grad(PARAMS, *batch, is_padding_example=padding)
        noise = theirs.noise_addition.gaussian_privatizer(stddev=stddev, prng_key=key)
        noisy, _ = noise.update(sums, noise.init(PARAMS))
        products = jax.tree.map(jnp.vdot, noisy, own)
        return sum(jax.tree.leaves(products))

    keys = jax.random.split(jax.random.key(5), 2 * trials)
    of_all = jax.jit(jax.vmap(score))(keys, jnp.arange(2 * trials) < trials)
    auditor = auditing.CanaryScoreAuditor(of_all[:trials], of_all[trials:])
    found = auditor.epsilon_clopper_pearson(1e-6, delta)
    assert found > (epsilon if broken else 0.3)
    assert broken or found <= epsilon


def test_sums_of_narrow_rows_are_wide_if_asked_for(theirs):
    del theirs
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (PARAMS, BATCH))
    options = {"batch_argnums": (1, 2), "l2_clip_norm": 1.0}
    sums = lambda dtype: privacy.clipped_grad(loss, dtype=dtype, **options)(
        narrow[0], *narrow[1]
    )
    own, wide = sums(None), sums(jnp.float32)
    for x, y in zip(jax.tree.leaves(own), jax.tree.leaves(wide), strict=True):
        assert (x.dtype, y.dtype) == (jnp.bfloat16, jnp.float32)
        np.testing.assert_array_equal(x, y.astype(jnp.bfloat16))


BAD = {
    "must not overlap": {"batch_argnums": 0},
    "`batch_argnums` must be": {"batch_argnums": ()},
    "`normalize_by` must be in": {"normalize_by": 0.0},
    "`l2_clip_norm` must be in": {"l2_clip_norm": -1.0},
}


@pytest.mark.parametrize("message", BAD)
def test_a_wrong_argument_is_named(theirs, message):
    del theirs
    with pytest.raises(ValueError, match=message):
        privacy.clipped_grad(loss, **{"l2_clip_norm": 1.0, **BAD[message]})


def test_without_jax_privacy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_privacy", None)
    monkeypatch.delitem(sys.modules, "jax_privacy.clipping", raising=False)
    with pytest.raises(ImportError, match="pip install jax_privacy"):
        privacy.clipped_grad(loss, l2_clip_norm=1.0)
