"""Signal-to-noise gate: pinned values, its level, and the soft gate's optimality."""

import numpy as np
import pytest

import consensus_optax as co
from tests import _pinned, _reference_agreement
from tests._pinned import first_update


@pytest.mark.parametrize("gate", ["hard", "soft"])
@pytest.mark.parametrize("threshold", [0.3, 2.0])
def test_equals_the_loop(gate, threshold):
    reference = _reference_agreement.signal_to_noise(threshold, gate)
    # The noise is the difference of two sums of squares.
    _pinned.check(co.signal_to_noise(threshold, gate), reference, rtol=3e-6)


def test_is_a_t_test_at_its_level():
    """Without signal, |t| > 2.093 in 5 % of cases at 19 degrees of freedom."""
    rows = np.random.default_rng(0).normal(size=(20, 20_000))
    update = first_update(co.signal_to_noise(2.093**2), rows)
    share = np.count_nonzero(update) / update.size
    assert abs(share - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 20_000)  # four deviations


def test_zero_threshold_is_the_mean():
    for gate in ("hard", "soft"):
        update = first_update(co.signal_to_noise(0.0, gate), _pinned.LARGE)
        np.testing.assert_allclose(update, _pinned.LARGE.mean(0), rtol=1e-5)


def test_what_rounding_alone_makes_is_no_noise():
    rows = np.tile(np.linspace(0.1, 7e4, 9), (7, 1))
    for gate in ("hard", "soft"):
        update = first_update(co.signal_to_noise(1e6, gate), rows)
        np.testing.assert_allclose(update, rows[0], rtol=1e-6)


def test_rejects_another_gate():
    with pytest.raises(ValueError, match="`gate` must be one of 'hard', 'soft'"):
        co.signal_to_noise(1.0, "medium")


@pytest.mark.parametrize("ratio", [1.0, 1e4, 1e8, 1e15])
@pytest.mark.parametrize("order", [1, -1])
def test_weights_that_differ_by_more_than_there_are_digits(ratio, order):
    """The variance of two rows is w1 w2 d^2 / (1 - w1^2 - w2^2): half of d^2."""
    weights, rows = np.array([ratio, 1.0])[::order], np.array([[1.0, 1.0], [3.0, 1.0]])
    shares = weights / weights.sum()
    mean, noise = shares @ rows, (shares**2).sum() * 2.0
    update = first_update(co.signal_to_noise(1.0, "soft"), rows, weights)
    signal = mean[0] ** 2 / noise
    np.testing.assert_allclose(update, [mean[0] * signal / (signal + 1), 1], rtol=1e-5)
