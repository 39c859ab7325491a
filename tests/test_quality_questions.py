"""What single questions of benchmarks/quality are made of: clients, texts, weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from benchmarks.quality import _texts, _trust_region, clients, label_noise


def test_attackers_are_the_last_and_do_what_is_said():
    """Honest clients have the same batches whatever the attackers do."""
    seen = {}
    draw = clients.drawn(16, 10)
    for attack in clients.ATTACKS[:2]:
        setting = clients.setting("Dirichlet 0.1", attack)
        shared, *_ = clients.shared_out(clients.DIGITS, setting, 3)
        shared = jax.tree.map(jnp.asarray, shared)
        (batch, code), weights = draw(shared, jax.random.key(0), 0)
        assert clients.ATTACKS[int(code)] == attack
        assert weights.shape == (clients.SAMPLED,)
        seen[attack] = batch.labels
    turned, usual = seen["labels turned"], seen["nobody"]
    honest = slice(None, -clients.LIARS)
    np.testing.assert_array_equal(turned[honest], usual[honest])
    liars = slice(-clients.LIARS, None)
    np.testing.assert_array_equal(turned[liars], 9 - usual[liars])


def test_windows_of_a_role_are_its_own_and_what_is_kept_back_is_of_no_client():
    train, valid, test = _texts.windows(0, 16, 3)
    said = "".join(_texts.roles().vocabulary[i] for i in train.characters[1].ravel())
    assert train.characters.shape == train.labels.shape == (3, 201, 16)
    flat = train.characters[1].ravel()
    np.testing.assert_array_equal(train.labels[1].ravel()[:-1], flat[1:])
    assert said.count(" ") > 300
    of = lambda part: {tuple(x) for x in part.characters.reshape(-1, 16).tolist()}
    assert not of(train) & of(valid)
    assert not of(valid) & of(test)
    *_, mixed = clients.plays("mixed", 0)
    *_, own = clients.plays("roles", 0)
    assert own.indices[2].tolist() == list(range(402, 603))
    for split in (mixed, own):
        assert sorted(split.indices.ravel().tolist()) == list(range(40 * 201))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["near_the_mean", "trust_region"])
def test_weights_of_a_trust_region_are_in_the_ball(rule):
    """0 is the mean; rounding of eight rows of five numbers is below 1e-5."""
    rows = jax.random.normal(jax.random.key(0), (8, 5)) + jnp.array(0.5)
    make, params = getattr(_trust_region, rule), jnp.zeros(5)
    update = lambda r: r.update(rows, r.init(params), params)[0]
    np.testing.assert_allclose(update(make(0.0)), rows.mean(0), atol=1e-5)
    for radius in (0.1, 0.5):
        reducer = make(radius)
        w = label_noise.coefficients(reducer, params, jnp.zeros(8), rows)
        gap = jnp.linalg.norm(w - 0.125) / jnp.linalg.norm(jnp.full(8, 0.125))
        assert 0.05 < gap <= radius * 1.0001
    if rule == "near_the_mean":
        far = update(make(1e6))
        np.testing.assert_allclose(
            far, update(co.subspace_weighting(length="mean_norm")), atol=1e-5
        )


def test_no_weights_of_the_ball_promise_more():
    """Of a thousand others of the same sum on the sphere, none."""
    rows = jax.random.normal(jax.random.key(1), (8, 5)) + jnp.array(0.5)
    params, mean = jnp.zeros(5), rows.mean(0)
    rule = _trust_region.trust_region(0.5)
    best = rule.update(rows, rule.init(params), params)[0] @ mean
    gaps = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    gaps -= gaps.mean(1, keepdims=True)
    gaps *= 0.5 / np.sqrt(8) / np.linalg.norm(gaps, axis=1, keepdims=True)
    others = (jnp.float32(0.125) + jnp.asarray(gaps)) @ rows @ mean
    assert float(others.max()) < float(best)
