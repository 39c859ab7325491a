"""What a step sees: random order, the same for all rules and with any padding."""

import jax
import numpy as np
import pytest

from consensus_optax.comparison._lab import Lab
from tests.comparison.tiny import PROBLEMS, grid_task, label_task, problem

pytestmark = pytest.mark.slow

SETTINGS = {"seeds": 2, "learning_rate": 1e-3, "width": 4, "depth": 1}


def batches(task, steps=6):
    """The batches of the first problem and seed, one for each step."""
    lab = Lab(task, **SETTINGS)
    train = jax.tree.map(lambda x: x[0], lab._train)
    return [lab._batch(train, lab._data_keys[0, 0], number) for number in range(steps)]


def test_padding_does_not_disturb_the_order():
    padded = batches(grid_task({"three": problem(3, size=(3, 3), num_padded=2)}))
    alone = batches(grid_task({"three": problem(3, size=(3, 3))}))
    for (one, weights), (other, ones) in zip(padded, alone, strict=True):
        assert weights.sum() == 3
        np.testing.assert_array_equal(one.inputs[weights > 0], other.inputs)
        np.testing.assert_array_equal(ones, 1)


def test_order_is_random():
    first = {batch.inputs[0].tobytes() for batch, _ in batches(grid_task(PROBLEMS))}
    assert len(first) > 1


def test_labels_are_drawn_without_replacement():
    for batch, weights in batches(label_task()):
        assert weights is None
        assert len(np.unique(np.asarray(batch.inputs), axis=0)) == 6


def test_seeds_start_from_different_weights():
    params = jax.tree.leaves(Lab(grid_task(PROBLEMS), **SETTINGS)._params)
    assert all(p.shape[:2] == (2, 2) for p in params)
    assert any((p[0, 0] != p[0, 1]).any() for p in params)
    assert any((p[0, 0] != p[1, 0]).any() for p in params)
