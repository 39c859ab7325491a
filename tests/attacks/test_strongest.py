"""Attacks that adapt: what the search finds, against exhaustive loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from consensus_optax import attacks
from tests import _reference_robust as robust
from tests._pinned import LARGE

HONEST, F = LARGE[:8], 2
ALIE = (attacks.a_little_is_enough, "num_deviations")
IPM = (attacks.inner_product_manipulation, "epsilon")


def found(attack, rule, honest=HONEST, **options):
    rows = jnp.asarray(honest, jnp.float32)
    search = lambda rows, rule_state: attacks.search_strength(
        attack[0], rule, attack[1], rows, F, state=rule_state, **options
    )
    return jax.jit(search)(rows, rule.init(rows[0]))


def by_loops(attack, reference, strength):
    """Distance from the honest mean, in float64."""
    mean, std = HONEST.mean(0), HONEST.std(0)
    bad = mean - strength * std if attack is ALIE else -strength * mean
    rows = np.concatenate([HONEST, np.tile(bad, (F, 1))])
    update = reference(rows.tolist(), np.ones(len(rows)).tolist())
    return np.linalg.norm(np.asarray(update) - mean)


@pytest.mark.parametrize(
    "attack", [pytest.param(ALIE, marks=pytest.mark.slow), IPM], ids=["ALIE", "IPM"]
)
def test_no_strength_of_a_fine_grid_is_much_better(attack):
    """As far as one peak is all there is; and the distance is the rule's own."""
    rule, reference = co.mean_around_median(F), robust.mean_around_median(F)
    result = found(attack, rule)
    at = lambda strength: by_loops(attack, reference, strength)
    np.testing.assert_allclose(result.distance, at(float(result.strength)), rtol=1e-5)
    # the best between two numbers of `GRID` may be missed: within a tenth
    assert float(result.distance) >= 0.9 * max(map(at, np.linspace(0, 50, 2001)))
    assert float(result.distance) >= max(map(at, attacks._strongest.GRID)) * (1 - 1e-5)


@pytest.mark.slow
def test_a_refined_peak_is_found():
    """Krum takes the attackers as long as they are near: a peak at the edge."""
    grid = (0.0, 1.0, 2.0, 3.0)
    coarse = found(IPM, co.mean_around_median(F), grid=grid, num_refinements=0)
    fine = found(IPM, co.mean_around_median(F), grid=grid)
    reference = robust.mean_around_median(F)
    near = np.linspace(coarse.strength - 1, coarse.strength + 1, 400)
    best = max(by_loops(IPM, reference, strength) for strength in near)
    assert float(coarse.distance) < 0.99 * best
    np.testing.assert_allclose(fine.distance, best, rtol=0.01)


@pytest.mark.slow
def test_the_attack_uses_what_is_found():
    rule = co.trimmed_mean(F)
    rows = jnp.asarray(HONEST, jnp.float32)
    attack = attacks.strongest(*ALIE[:1], rule, ALIE[1], num_refinements=2)
    bad = attack(rows, F, jax.random.key(0))
    best = found(ALIE, rule, num_refinements=2)
    wanted = attacks.a_little_is_enough(rows, F, num_deviations=best.strength)
    np.testing.assert_allclose(bad, wanted, rtol=1e-6)


@pytest.mark.slow
def test_weights_and_state_are_the_rules_own():
    rule = co.centered_clipping(1.0)
    heavy = jnp.array([8.0, *[1.0] * 9])
    result = found(IPM, rule, weights=heavy, grid=(0.0, 1.0), num_refinements=0)
    rows, update_once = jnp.asarray(HONEST, jnp.float32), jax.jit(rule.update)
    joined = attacks.join(rows, attacks.inner_product_manipulation(rows, F, epsilon=1))
    update, _ = update_once(joined, rule.init(rows[0]), rows[0], weights=heavy)
    mean = np.average(HONEST, axis=0, weights=heavy[:8])
    np.testing.assert_allclose(
        result.distance, np.linalg.norm(update - mean), rtol=1e-5
    )
    # a state that has come near the rows is pulled less far off
    _, state = update_once(rows, rule.init(rows[0]), rows[0])
    search = lambda state: attacks.search_strength(
        *(IPM[0], rule, IPM[1], rows, F), grid=(1.0,), num_refinements=0, state=state
    )
    fresh, later = jax.jit(search)(rule.init(rows[0])), jax.jit(search)(state)
    assert not np.allclose(fresh.distance, later.distance, rtol=1e-3)


@pytest.mark.slow
def test_rules_with_a_scale_of_their_own_are_compared_with_themselves():
    rule = co.sign_vote()
    far = found(IPM, rule, reference="rule").distance
    none = found(IPM, rule, reference="rule", grid=(-1.0,), num_refinements=0).distance
    assert float(none) == 0  # minus minus the mean votes as the mean
    assert float(far) > 1


@pytest.mark.slow
def test_a_strength_without_a_number_is_not_taken():
    bad = lambda honest, f, key, tau: jax.tree.map(
        lambda leaf: jnp.where(tau > 1, jnp.nan, tau) * jnp.ones((f, leaf.shape[1])),
        honest,
    )
    never = co.Columns(lambda stack, weights: jnp.sum(stack, 0) / 4)
    rule = optax_like(never)
    result = found((bad, "tau"), rule, grid=(0.0, 1.0, 2.0), num_refinements=3)
    assert np.isfinite(result.distance)
    assert float(result.strength) <= 1


def optax_like(rule):
    """An aggregator that lets nan through, as others do."""
    made = co.reducer(rule)
    plain = lambda rows, state, params, **extra: (rows.sum(0) / 4, state)
    return type(made)(made.init, plain)


def test_bad_arguments():
    search = lambda **options: attacks.strongest(
        **{"attack": ALIE[0], "rule": co.mean(), "strength": ALIE[1], **options}
    )
    with pytest.raises(ValueError, match="`rule` must be a reducer; got 'krum'"):
        search(rule="krum")
    with pytest.raises(ValueError, match="`grid` must be increasing numbers"):
        search(grid=(1.0, 1.0))
    with pytest.raises(ValueError, match="`strength` must be the name of an argument"):
        search(strength=1.0)
    with pytest.raises(ValueError, match="Did you mean 'rule'"):
        search(reference="rules")
    with pytest.raises(ValueError, match=r"`weights` must be \(10,\), of 8 honest"):
        search()(jnp.asarray(HONEST), F, weights=jnp.ones(8))
