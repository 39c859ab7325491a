import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests._reference_robust import bulyan


@pytest.mark.slow
def test_many_rows_equal_the_published_loop():
    random = np.random.default_rng(4)
    params = jnp.zeros(6)
    for count, f in ((11, 2), (15, 3), (14, 2)):
        rows = random.normal(size=(count, 6)).astype(np.float32)
        rows[:f] += 20
        rule = co.bulyan(f)
        got = jax.jit(rule.update)(jnp.asarray(rows), rule.init(params), params)[0]
        wanted = bulyan(f)(rows.astype(float).tolist(), [1.0] * count)
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_one_coordinate_cannot_hide_a_large_change():
    """A row like an honest one but for one entry passes Krum, not Bulyan."""
    random = np.random.default_rng(5)
    honest = random.normal(size=(9, 400)).astype(np.float32)
    hidden = np.tile(honest.mean(0), (2, 1))
    hidden[:, 0] += 15
    rows, params = jnp.asarray(np.concatenate([honest, hidden])), jnp.zeros(400)
    krum, robust = (
        jax.jit(rule.update)(rows, rule.init(params), params)[0][0]
        for rule in (co.krum(2), co.bulyan(2))
    )
    assert krum > 10
    assert abs(robust - honest[:, 0].mean()) < 2
