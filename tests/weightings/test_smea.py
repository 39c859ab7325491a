import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests._pinned import LARGE, first_update

HONEST, ATTACKERS, DIMENSIONS = 6, 3, 12


def adversarial(count=40):
    """Honest rows, and attackers far away, near, together or each for itself."""
    random = np.random.default_rng(3)
    for i in range(count):
        honest = random.normal(size=(HONEST, DIMENSIONS)) * 10.0 ** (i % 3 - 1)
        honest += random.normal(size=DIMENSIONS)
        along = random.normal(size=(1 if i % 2 else ATTACKERS, DIMENSIONS))
        size = honest.std() * 10.0 ** random.uniform(-1, 6)
        bad = honest.mean(0) + size * along * np.ones((ATTACKERS, 1))
        yield honest, np.concatenate([honest, bad])


def test_is_within_its_bound_of_the_honest_mean():
    rule, params = co.smea(ATTACKERS), jnp.zeros(DIMENSIONS)
    state = rule.init(params)
    cases = list(adversarial())
    stacks = jnp.asarray(np.stack([rows for _, rows in cases]), jnp.float32)
    run = jax.jit(jax.vmap(lambda rows: rule.update(rows, state, params)[0]))
    for (honest, _), update in zip(cases, np.asarray(run(stacks)), strict=True):
        covariance = np.cov(honest, rowvar=False, bias=True)
        widest = np.linalg.eigvalsh(covariance)[-1]
        bound = 2 * np.sqrt(ATTACKERS * widest / (HONEST - ATTACKERS))
        assert np.linalg.norm(update - honest.mean(0)) <= bound * (1 + 1e-5)


def test_it_is_the_covariance_that_counts_and_not_the_diameter():
    """A simplex of edge 2 has eigenvalues 1/2, two pairs of points 1.9 apart 0.9."""
    simplex = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 2**0.5
    corner, outward = simplex[0], simplex[0] / np.linalg.norm(simplex[0])
    pairs = np.array([corner, corner, corner + 1.9 * outward, corner + 1.9 * outward])
    rows = np.concatenate([simplex, pairs[1:]])
    got = first_update(co.smea(3), rows), first_update(co.minimum_diameter(3), rows)
    np.testing.assert_allclose(got[0], simplex.mean(0), atol=1e-6)
    np.testing.assert_allclose(got[1], pairs.mean(0), atol=1e-6)


def test_too_many_subsets_are_an_error_that_names_other_rules():
    rule, params = co.smea(8), jnp.zeros(2)
    with pytest.raises(ValueError, match="at most 50000 subsets"):
        jax.eval_shape(rule.update, jnp.ones((24, 2)), rule.init(params), params)


def test_is_the_same_at_any_scale():
    """From where squares are 1e-30 to where those of differences would be infinite."""
    wanted = first_update(co.smea(2), LARGE)
    for scale in (2.0**-50, 2.0**58):
        got = first_update(co.smea(2), scale * LARGE)
        np.testing.assert_allclose(got, scale * wanted, rtol=0, atol=1e-6 * scale * 4)
