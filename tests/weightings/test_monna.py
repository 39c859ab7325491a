import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests._pinned import LARGE, first_update
from tests.weightings.test_smea import ATTACKERS, DIMENSIONS, HONEST, adversarial


def test_no_farther_from_the_trusted_row_than_the_farthest_honest_row():
    rule, params = co.monna(ATTACKERS, index=2), jnp.zeros(DIMENSIONS)
    state = rule.init(params)
    cases = list(adversarial())
    stacks = jnp.asarray(np.stack([rows for _, rows in cases]), jnp.float32)
    run = jax.jit(jax.vmap(lambda rows: rule.update(rows, state, params)[0]))
    for (honest, _), update in zip(cases, np.asarray(run(stacks)), strict=True):
        assert len(honest) == HONEST
        farthest = np.linalg.norm(honest - honest[2], axis=1).max()
        assert np.linalg.norm(update - honest[2]) <= farthest * (1 + 1e-5)


def test_without_its_row_there_is_nothing_to_be_near_to():
    rule, params = co.monna(2, index=4), jnp.zeros(5)
    update = jax.jit(
        lambda rows, weights: rule.update(
            rows, rule.init(params), params, weights=weights
        )
    )
    for rows, weights in (
        (LARGE, np.float32(np.arange(10) != 4)),
        (np.where(np.arange(10)[:, None] == 4, np.nan, LARGE), np.ones(10, np.float32)),
    ):
        got, state = update(jnp.asarray(rows, jnp.float32), weights)
        assert not got.any()
        assert not state.consensus_ready


@pytest.mark.slow
def test_the_order_of_the_other_rows_is_irrelevant():
    random = np.random.default_rng(4)
    wanted = first_update(co.monna(3), LARGE)
    for _ in range(3):
        order = np.concatenate([[0], 1 + random.permutation(9)])
        got = first_update(co.monna(3), LARGE[order])
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6 * abs(wanted).max())


def test_a_row_that_is_not_there_is_an_error():
    with pytest.raises(
        ValueError, match="`index` must be less than the number of rows"
    ):
        first_update(co.monna(1, index=10), LARGE)
    with pytest.raises(ValueError, match="`index` must be at least 0"):
        co.monna(1, index=-1)
