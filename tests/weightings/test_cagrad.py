"""CAGrad with a preference, and clipped at it."""

import jax
import jax.numpy as jnp
import numpy as np

import consensus_optax as co
from tests._pinned import LARGE, first_update

ROWS, PREFERENCE = np.array([[1.0, -4.0], [-1.0, 1.0]]), np.array([0.2, 0.8])
# Of these two rows with c = 0.5, as others publish it: the first one's share of the
# worst mix, and the cosines with the mean of that mix before and after it is clipped.
SHARE, COSINE, CLIPPED = 0.356145, 0.34578, 0.94333


def correction(clip):
    """What is added to the mean, and the mean."""
    mean = PREFERENCE @ ROWS
    update = first_update(co.cagrad(0.5, PREFERENCE, clip), ROWS)
    return update - mean, mean


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_two_rows_as_published():
    worst = np.array([SHARE, 1 - SHARE])
    for clip, weights, wanted in (
        (False, worst, COSINE),
        (True, np.minimum(worst, PREFERENCE), CLIPPED),
    ):
        added, mean = correction(clip)
        np.testing.assert_allclose(cosine(added, mean), wanted, atol=1e-4)
        np.testing.assert_allclose(cosine(added, weights @ ROWS), 1, atol=1e-5)
        length = np.linalg.norm(added) / np.linalg.norm(mean)
        np.testing.assert_allclose(length, 0.5, rtol=1e-4)


def test_the_update_is_in_the_ball_and_never_against_the_mean():
    random = np.random.default_rng(0)
    rule = co.cagrad(0.7, clip=True)
    for _ in range(20):
        rows = random.normal(size=(10, 5))
        update, mean = first_update(rule, rows), rows.mean(0)
        size = np.linalg.norm(mean)
        assert np.linalg.norm(update - mean) <= 0.7 * size * (1 + 1e-4)
        assert update @ mean >= 0.3 * size**2 * (1 - 1e-3)


def test_the_mean_where_no_step_helps_every_row():
    """Pareto-stationary: two rows cancel, the mean does not."""
    rows = np.array([[0.0, 2.0], [0.0, -1.0], [3.0, 0.0]])
    assert not first_update(co.cagrad(), rows).any()
    clipped = first_update(co.cagrad(clip=True), rows)
    np.testing.assert_allclose(clipped, [1, 1 / 3], atol=1e-6)


def test_a_preference_for_one_row_clips_all_others_away():
    only = [0, 0, 0, 1.0, 0, 0, 0, 0, 0, 0]
    update = first_update(co.cagrad(0.5, only, clip=True), LARGE)
    assert cosine(update, LARGE[3]) > 1 - 1e-5


def test_rows_of_very_unequal_length_are_not_opposed():
    """To 1e10 in float32; what is not solved says so."""
    random, rule, params = np.random.default_rng(0), co.cagrad(1.5), jnp.zeros(6)
    rows = random.normal(size=(6, 20, 4, 6))
    rows[:, :, 0] *= 10.0 ** np.array([0, 2, 4, 6, 8, 10])[:, None, None]
    rows = rows.reshape(-1, 4, 6).astype(np.float32)

    @jax.jit
    @jax.vmap
    def first(stack):
        update, state = rule.update(stack, rule.init(params), params)
        return update, state.rule_state.converged, state.consensus_ready

    updates, converged, ready = first(rows)
    gains = np.einsum("sbp,sp->sb", rows.astype(float), np.asarray(updates, float))
    lengths = np.linalg.norm(rows, axis=-1).astype(float)
    lengths *= np.linalg.norm(updates, axis=-1, keepdims=True).astype(float)
    # An update may be 7e-4 of the rows it is made of (or it is zero), each of which is
    # known to a few eps.
    allowed = 8 * np.finfo(np.float32).eps / 7e-4 * lengths
    fair = (gains >= -allowed).all(1)
    assert (fair | ~converged).all()
    assert (converged & ready).mean() > 0.9
