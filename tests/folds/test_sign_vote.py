"""Majority vote: pinned values, and signSGD with worker momentum."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from tests import _pinned, _reference_agreement


@pytest.mark.parametrize("magnitude", ["unit", "vote", "mean"])
def test_equals_the_loop(magnitude):
    _pinned.check(co.sign_vote(magnitude), _reference_agreement.sign_vote(magnitude))


def test_groups_are_another_method_than_microbatches():
    """Per row the vote is 2 of 4; of the means of pairs it is a tie."""
    rows = np.array([[1.0], [1.0], [1.0], [-9.0]])
    pairs = rows.reshape(2, 2, 1).mean(1)
    assert _pinned.first_update(co.sign_vote("vote"), rows) == [0.5]
    assert _pinned.first_update(co.sign_vote("vote"), pairs) == [0.0]


def test_a_tie_and_zeros_move_nothing():
    rule, params = co.sign_vote(), jnp.zeros(2)
    rows = jnp.array([[3.0, 0.0], [-1.0, 0.0]])
    update, state = rule.update(rows, rule.init(params), params)
    assert update.tolist() == [0.0, 0.0]
    assert not state.consensus_ready
    assert state.consensus_ratio == 0


def test_is_sign_sgd_with_majority_vote():
    """Worker momentum, its sign, the sign of the sum of signs, step after step."""
    random = np.random.default_rng(0)
    params, workers = jnp.zeros(5), 3
    tx = optax.chain(co.row_momentum(0.9, workers), co.sign_vote(), optax.sgd(0.1))
    state, momentum = tx.init(params), np.zeros((workers, 5))
    for _ in range(4):
        rows = random.normal(size=(workers, 5)).astype(np.float32)
        update, state = tx.update(jnp.asarray(rows), state, params)
        momentum = 0.9 * momentum + 0.1 * rows
        wanted = -0.1 * np.sign(np.sign(momentum).sum(0))
        np.testing.assert_allclose(update, wanted, rtol=1e-6)


def test_rejects_another_magnitude():
    with pytest.raises(ValueError, match="`magnitude` must be one of 'unit', 'vote'"):
        co.sign_vote("max")
