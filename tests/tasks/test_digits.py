"""The digits: noise in the training labels only."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason='needs pip install "consensus_optax[demo]"')

from consensus_optax import tasks


def test_noise_is_in_the_training_labels_only():
    clean, noisy = tasks.digits(), tasks.digits(label_noise=0.4)
    changed = clean.train.targets != noisy.train.targets
    assert changed.sum() == round(0.4 * changed.size)
    np.testing.assert_array_equal(clean.test.targets, noisy.test.targets)
    np.testing.assert_array_equal(clean.train.inputs, noisy.train.inputs)


def test_parts_are_apart_and_whole():
    task = tasks.digits()
    pictures = np.concatenate([task.train.inputs[0], task.test.inputs[0]])
    assert pictures.shape == (1797, 8, 8, 1)
    assert pictures.min() == 0
    assert pictures.max() == 1
    assert task.test.targets.shape == (1, 360)


def test_trivial_prediction_is_the_commonest_class():
    task = tasks.digits(label_noise=0.4)
    clean = tasks.digits().train.targets[0]
    by_hand = np.mean(task.test.targets[0] == np.bincount(clean).argmax())
    np.testing.assert_allclose(task.trivial_accuracy, by_hand)


def test_wrong_noise():
    with pytest.raises(ValueError, match=r"`share` must be in \[0, 1\]; got 2"):
        tasks.digits(label_noise=2)
