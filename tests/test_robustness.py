"""Robust rules at their breakdown bounds under every attack; the mean breaks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax import attacks

pytestmark = pytest.mark.slow

DIMENSIONS, SEEDS = 40, 3
# Farther than this many root-mean-square distances of the honest rows from their mean
# is broken. Every rule has a constant that its paper proves; these hold with slack.
BOUND = 3.0


def far_and_near(honest, num_byzantine, key):
    """One row so far away that its size takes the digits of the others' distances."""
    shape = (num_byzantine, *honest.shape[1:])
    near = jnp.broadcast_to(honest.mean(0) + 50, shape)
    sign = jnp.where(jnp.arange(shape[1]) % 2, -1, 1).astype(honest.dtype)
    return near.at[0].set(1e10 * sign)


TOGETHER = {
    "sign flip": attacks.sign_flip,
    "own sign flip": functools.partial(attacks.sign_flip, own=True),
    "long sign flip": functools.partial(attacks.sign_flip, scale=20.0),
    "inner product": attacks.inner_product_manipulation,
    "long inner product": functools.partial(
        attacks.inner_product_manipulation, epsilon=100.0
    ),
    "a little": attacks.a_little_is_enough,
    "more than a little": functools.partial(
        attacks.a_little_is_enough, num_deviations=3.0
    ),
    "mimic": attacks.mimic,
    "infinite": attacks.infinite,
    "overflowing": functools.partial(attacks.infinite, value=1e30),
    "huge": functools.partial(attacks.infinite, value=1e10),
}
EVERY = TOGETHER | {"gaussian": attacks.gaussian, "far and near": far_and_near}
BREAK_THE_MEAN = {
    "long sign flip",
    "long inner product",
    "overflowing",
    "huge",
    "gaussian",
    "far and near",
}


def nnm(num_byzantine, rule):
    return co.after(co.nearest_neighbor_mixing(num_byzantine), rule)


def of_buckets():
    return co.after(co.bucketing(2, jax.random.key(5)), co.median())


# Rule, n and the largest f that its bound allows.
AT_THE_BOUND = {
    "median": (co.median(), 11, 5),
    "trimmed mean": (co.trimmed_mean(5), 11, 5),
    "winsorized mean": (co.winsorized_mean(5 / 11), 11, 5),
    "mean around median": (co.mean_around_median(5), 11, 5),
    "krum": (co.krum(4), 11, 4),
    "multi-krum": (co.krum(4, 7), 11, 4),
    "bulyan": (co.bulyan(2), 11, 2),
    "minimum diameter": (co.minimum_diameter(4), 9, 4),
    "smea": (co.smea(4), 9, 4),
    "caf": (co.caf(5), 11, 5),
    "monna": (co.monna(5), 11, 5),
    "geometric median": (co.geometric_median(), 11, 5),
    "centered clipping": (co.centered_clipping(6.0, 30), 11, 5),
    "comparative elimination": (co.comparative_elimination(5), 11, 5),
    "divide and conquer": (co.divide_and_conquer(5), 11, 5),
    "trusted row": (co.trusted_row(), 11, 5),
    "mixing, median": (nnm(5, co.median()), 11, 5),
    "mixing, krum": (nnm(4, co.krum(4)), 11, 4),
    "mixing, clipping": (nnm(5, co.centered_clipping(6.0, 30)), 11, 5),
    "clipping, trimmed mean": (
        co.after(co.adaptive_clipping(5), co.trimmed_mean(5)),
        11,
        5,
    ),
    "buckets, median": (of_buckets(), 12, 2),
}


def distances(rule, num_rows, num_byzantine, tried):
    """Attack to distance of the update from the honest mean, worst of the seeds."""
    stacks, means, spreads = [], [], []
    for attack in tried.values():
        for seed in range(SEEDS):
            of_rows, of_attack = jax.random.split(jax.random.key(seed))
            shape = (num_rows - num_byzantine, DIMENSIONS)
            honest = 1 + jax.random.normal(of_rows, shape)
            center = honest.mean(0)
            stacks += [attacks.join(honest, attack(honest, num_byzantine, of_attack))]
            means += [center]
            far = ((honest - center[None]) ** 2).sum(1)
            spreads += [jnp.sqrt(far.mean())]
    params = jnp.zeros(DIMENSIONS)
    state = rule.init(params)
    update = jax.jit(jax.vmap(lambda rows: rule.update(rows, state, params)[0]))
    found = np.asarray(update(jnp.stack(stacks)), float)
    off = found - np.asarray(jnp.stack(means), float)
    relative = np.linalg.norm(off, axis=1) / np.asarray(spreads)
    return dict(zip(tried, relative.reshape(-1, SEEDS).max(1), strict=True))


@pytest.mark.parametrize("name", AT_THE_BOUND)
def test_no_attack_takes_it_far_from_the_honest_mean(name):
    rule, num_rows, num_byzantine = AT_THE_BOUND[name]
    # Only attackers that pull together are what divide and conquer is made for.
    tried = TOGETHER if name == "divide and conquer" else EVERY
    found = distances(rule, num_rows, num_byzantine, tried)
    broken = {attack: x for attack, x in found.items() if not x <= BOUND}
    assert not broken


def test_the_mean_is_broken_by_the_strong_attacks():
    found = distances(co.mean(), 11, 5, EVERY)
    broken = {attack for attack, x in found.items() if not x <= BOUND}
    assert broken == BREAK_THE_MEAN


def test_one_attacker_more_breaks_the_median_and_krum():
    for rule, num_byzantine in ((co.median(), 6), (co.krum(4), 6)):
        found = distances(rule, 11, num_byzantine, {"huge": EVERY["huge"]})
        assert not found["huge"] <= BOUND


def clipped_mean(num_byzantine):
    return co.after(co.adaptive_clipping(num_byzantine), co.mean())


def mixed_mean(num_byzantine):
    return nnm(num_byzantine, co.mean())


NEEDS = [  # with f = 2
    (co.trimmed_mean, "n > 2f", 5),
    (co.mean_around_median, "n > 2f", 5),
    (co.krum, "n >= 2f + 3", 7),
    (co.bulyan, "n >= 4f + 3", 11),
    (co.minimum_diameter, "n > 2f", 5),
    (co.smea, "n > 2f", 5),
    (co.caf, "n > 2f", 5),
    (co.monna, "n > 2f", 5),
    (co.comparative_elimination, "n > 2f", 5),
    (co.divide_and_conquer, "n > 2f", 5),
    (mixed_mean, "n > 2f", 5),
    (clipped_mean, "n > 2f", 5),
]


@pytest.mark.parametrize(("make", "bound", "enough"), NEEDS)
def test_below_the_bound_the_first_trace_is_an_error(make, bound, enough):
    rule, params = make(2), jnp.zeros(2)
    state = rule.init(params)
    trace = lambda n: jax.eval_shape(rule.update, jnp.ones((n, 2)), state, params)
    trace(enough)
    with pytest.raises(ValueError, match=r"`(num_byzantine|trim)` must leave") as error:
        trace(enough - 1)
    assert bound in str(error.value)
    assert f"at least {enough} rows are needed; got {enough - 1}" in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        co.trimmed_mean,
        co.mean_around_median,
        co.krum,
        co.bulyan,
        co.minimum_diameter,
        co.smea,
        co.caf,
        co.monna,
        co.comparative_elimination,
        co.divide_and_conquer,
        co.nearest_neighbor_mixing,
        co.adaptive_clipping,
    ],
)
def test_the_number_of_arbitrary_rows_is_a_count(make):
    for value, message in ((-1, "at least 0"), (1.5, "integer"), (jnp.ones(()), "int")):
        with pytest.raises(ValueError, match=message):
            make(value)
