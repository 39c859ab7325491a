"""Majority vote: pinned values, and signSGD with worker momentum."""

import itertools

import jax
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


@pytest.mark.parametrize("make", [co.sign_vote, co.median], ids=["vote", "median"])
@pytest.mark.parametrize("weights", [(0.1, 0.2, 0.3, 0.6), (0.3, 0.5, 0.8, 1.6)])
def test_ties_of_weights_do_not_hang_on_the_order_they_are_added_in(make, weights):
    rows = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0], [-1.0, 10.0]])
    rule, params = make(), jnp.zeros(2)

    def update(rows, weights):
        return rule.update(rows, rule.init(params), params, weights=weights)[0]

    orders = np.array([*itertools.permutations(range(4))])
    given = jnp.float32(rows[orders]), jnp.float32(np.array(weights)[orders])
    found = np.asarray(jax.jit(jax.vmap(update))(*given))
    assert (found == found[:1]).all()
    assert found[0].tolist() == ([0, 1] if make is co.sign_vote else [0, 6.5])[:2]
