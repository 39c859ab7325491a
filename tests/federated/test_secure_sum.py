"""Rules on masked sums: what they are on rows; and those that cannot be had."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from consensus_optax import federated
from tests._pinned import LARGE

KEY = jax.random.key(3)
PARAMS = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(()), "n": jnp.zeros((), jnp.int32)}
ROWS = {
    "w": jnp.asarray(LARGE[:, :4].reshape(-1, 2, 2), jnp.float32),
    "b": jnp.asarray(LARGE[:, 4], jnp.float32),
    "n": jnp.zeros(10, jnp.int32),
}
WEIGHTS = jnp.array([1.0, 2, 1, 0, 1, 1, 3, 1, 0.5, 1])
PRIVATE = co.private_sum(1.0, divisor=5.0, noise_multiplier=0.7, key=jax.random.key(9))
SUM = co.Statistic(lambda g, w: w * g, jnp.add)
SQUARES = co.Statistic(lambda g, w: w * g**2, jnp.add)


def over_deviation(merged, roster):
    pairs = zip(*merged, strict=True)
    return [total / jnp.sqrt(squares + 1) for total, squares in pairs]


# a rule, the bound of its sums, and a reason to call it a sum
SUMS = {
    "mean": (co.mean(), 64.0),
    "clipped": (co.clipped_sum(1.0, divisor=5.0), 4.0),
    "private": (PRIVATE, 4.0),
    "vote": (co.sign_vote("vote"), 16.0),
    "squares": (co.reducer(co.Fold((SUM, SQUARES), over_deviation)), 2.0**16),
    "constant": (co.constant(jnp.arange(10.0)), 2.0**15),
}
QUICK = ("clipped",)


def once(rule, rows=ROWS, weights=WEIGHTS, steps=1):
    state = rule.init(PARAMS)
    update = jax.jit(rule.update)
    found = None
    for _ in range(steps):
        found, state = update(rows, state, PARAMS, weights=weights)
    return found, state


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SUMS],
)
def test_the_update_is_the_rules(name):
    rule, bound = SUMS[name]
    secure = federated.secure_sum(rule, bound=bound, key=KEY)
    # two steps: state and noise go on as they do
    (found, state), (wanted, plain) = once(secure, steps=2), once(rule, steps=2)
    # ten parts of a sum within the bound, and the rounding of the sum
    atol = 10 * bound * 2.0**-30
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6 + atol),
        found,
        wanted,
    )
    assert int(state.rule.step) == int(plain.step) == 2
    assert bool(state.rule.consensus_ready)
    assert int(state.rule.num_present) == 9


@pytest.mark.slow
def test_dropped_and_broken_clients_are_recovered_from():
    broken = {**ROWS, "b": ROWS["b"].at[2].set(jnp.nan)}
    secure = federated.secure_sum(co.mean(), bound=64.0, key=KEY, threshold=4)
    found, state = once(secure, broken)
    wanted, _ = once(co.mean(), broken)
    np.testing.assert_allclose(found["w"], wanted["w"], rtol=1e-5, atol=1e-6)
    assert int(state.rule.num_nonfinite) == 1
    # too few: nothing
    few = jnp.zeros(10).at[:3].set(1)
    found, state = once(secure, weights=few)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))
    assert not bool(state.rule.consensus_ready)


@pytest.mark.slow
def test_too_few_are_noise_alone_where_there_is_noise():
    """As where nobody is there: whether one more is there is not to be seen."""
    noisy = federated.secure_sum(PRIVATE, bound=4.0, key=KEY, threshold=4)
    found, state = once(noisy, weights=jnp.zeros(10).at[:3].set(1))
    nobody, _ = once(PRIVATE, weights=jnp.zeros(10))
    jax.tree.map(np.testing.assert_array_equal, found, nobody)
    assert np.all(found["w"])
    assert bool(state.rule.consensus_ready)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "bound"), [(co.sign_vote("vote"), 5.0), (co.mean(), 1.0)], ids=str
)
def test_what_is_just_at_the_bound_is_not_cut(rule, bound):
    """All rows at their largest, and weights whose shares are rounded."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (5, 1000))
    signs[:, :10] = 1
    rows, params = jnp.asarray(signs, jnp.float32), jnp.zeros(1000)
    for weights in (None, jnp.array([0.7, 0.9, 1.1, 1.3, 1.0])):
        secure = federated.secure_sum(rule, bound=bound, key=KEY)
        given = {"params": params, "weights": weights}
        found, state = secure.update(rows, secure.init(params), **given)
        assert int(state.num_clamped) == 0
        wanted, _ = rule.update(rows, rule.init(params), **given)
        # the code's error for each of five, and rounding of parts and of the sum
        atol = bound * (5 * 2.0**-30 + 8 * 2.0**-24)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


@pytest.mark.slow
def test_no_part_is_longer_than_it_was_and_none_beyond_its_share():
    """Truncation towards zero keeps what clipping has made sure of."""
    secure = federated.secure_sum(co.mean(), bound=1.0, key=KEY)
    found, state = once(secure)
    assert all(np.abs(x).max() <= 1 for x in (found["w"], found["b"]))
    there = np.asarray(WEIGHTS) > 0
    assert int(state.num_clamped) == (np.abs(LARGE[there]) > 1 - 1e-5).sum()
    shares = np.asarray(WEIGHTS / WEIGHTS.sum(), np.float64)
    wanted = (shares[:, None] * np.clip(LARGE, -1, 1)).sum(0)
    np.testing.assert_allclose(found["b"], wanted[4], atol=1e-4)


def test_rules_that_need_single_rows_say_why():
    secure = lambda rule: federated.secure_sum(rule, bound=1.0, key=KEY)
    reasons = {
        co.krum(1): r"got krum\(1\), which compares the rows' products",
        co.median(): "sorts the rows' entries in every coordinate",
        co.sign_consensus(): "merges rows otherwise than by adding them",
        co.comparative_elimination(1): "compares the rows' lengths",
        co.centered_clipping(1.0): "remembers updates",
        co.after(co.nearest_neighbor_mixing(1), co.mean()): "chooses or mixes rows",
        co.among(co.cosine_filter(), co.mean()): "chooses or mixes rows",
    }
    for rule, reason in reasons.items():
        with pytest.raises(ValueError, match=reason):
            secure(rule)
    with pytest.raises(ValueError, match="`rule` must be a reducer of this library"):
        secure(optax.sgd(1.0))
    with pytest.raises(ValueError, match="`bound` must be in"):
        federated.secure_sum(co.mean(), bound=-1.0, key=KEY)
