"""Label noise: exactly the share asked for, and every changed label wrong."""

import numpy as np
import pytest

from consensus_optax.tasks import flip_labels


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.999, 1.0])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_share_is_exact(share, num_classes):
    labels = np.random.default_rng(0).integers(0, num_classes, 1437).astype(np.int32)
    noisy = flip_labels(labels, share, num_classes=num_classes)
    assert (noisy != labels).sum() == round(share * 1437)
    assert noisy.dtype == labels.dtype
    assert noisy.min() >= 0
    assert noisy.max() < num_classes


def test_other_classes_are_equally_likely():
    noisy = flip_labels(np.full(90_000, 3), 1.0, num_classes=10)
    counts = np.bincount(noisy, minlength=10)
    assert counts[3] == 0
    np.testing.assert_allclose(np.delete(counts, 3), 10_000, rtol=0.05)


def test_input_is_left_alone_and_seed_decides():
    labels = np.arange(10)
    first, second = (flip_labels(labels, 0.5, num_classes=10, seed=s) for s in (0, 1))
    np.testing.assert_array_equal(labels, np.arange(10))
    assert (first != second).any()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_wrong_share(share):
    with pytest.raises(ValueError, match=r"`share` must be in \[0, 1\]"):
        flip_labels(np.arange(3), share, num_classes=3)


def test_wrong_number_of_classes():
    with pytest.raises(ValueError, match="`num_classes` must be at least 2; got 1"):
        flip_labels(np.zeros(3, int), 0.5, num_classes=1)


@pytest.mark.parametrize(
    "labels", [np.ones(3), np.array([0, -1]), np.array([0, 3]), np.ones((2, 2), int)]
)
def test_labels_are_classes(labels):
    with pytest.raises(ValueError, match="`labels` must be integers in"):
        flip_labels(labels, 0.5, num_classes=3)
