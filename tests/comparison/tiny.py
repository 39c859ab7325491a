"""A comparison small enough for tests, made once."""

import functools

import numpy as np

import consensus_optax as co
from consensus_optax import comparison, tasks

SMALL = {"seeds": 2, "width": 4, "depth": 1, "num_evaluations": 2}


def problem(num_train, *, size, num_padded=0, seed=0):
    """Grids of two colours; the output is the input with the colours exchanged."""
    rng = np.random.default_rng(seed)
    grids = [rng.integers(0, 2, size) for _ in range(num_train + 2)]
    pictures, targets = [np.eye(2)[g] for g in grids], [1 - g for g in grids]
    pad = functools.partial(tasks.pad_examples, size=(4, 4))
    return (
        pad(pictures[2:], targets[2:], num_examples=num_train + num_padded),
        pad(pictures[:2], targets[:2], num_examples=2),
    )


def grid_task(problems):
    """A task like ARC; ``problems`` maps names to results of `problem`."""
    train, test = zip(*problems.values(), strict=True)
    return tasks.Task(
        name="swap",
        problems=tuple(problems),
        train=tasks.stack_problems(train),
        test=tasks.stack_problems(test),
        num_classes=2,
        num_rows=None,
        group_size=1,
        unit="pixel",
        trivial="copying the input",
        trivial_accuracy=np.zeros(len(problems)),
    )


def label_task():
    """A task like the digits: is the picture bright?"""
    rng = np.random.default_rng(0)
    pictures = rng.uniform(size=(12, 2, 2, 1)).astype(np.float32)
    labels = (pictures.mean((1, 2, 3)) > 0.5).astype(np.int32)
    ones = np.ones((12, 2, 2), np.float32)
    part = tasks.stack_problems(
        [tasks.Examples(pictures, ones, labels, np.ones(12, np.float32))]
    )
    return tasks.Task(
        "bright", ("bright",), part, part, 2, 2, 3, "label", "no", np.array([0.5])
    )


class QuickLab:
    """Stands in for the lab where only the order of events matters."""

    def __init__(self, task, **settings):
        self.shape = len(task.problems), settings["seeds"]

    def start(self, rule):
        return 0

    def trace(self, rule, fit, most_steps):
        if rule == "picky":
            raise ValueError("needs 7 rows; got 3")

        def run(fit, num_steps):
            return fit + num_steps, {"loss": np.zeros((*self.shape, num_steps))}

        return lambda: run

    def trace_evaluation(self):
        return lambda: (
            lambda fit: {m: np.full(self.shape, float(fit)) for m in comparison.METRICS}
        )


PROBLEMS = {
    "two": problem(2, size=(3, 3), num_padded=1),
    "three": problem(3, size=(4, 2), seed=1),
}


@functools.cache
def result():
    """Two problems, two rules, four steps in two rounds."""
    rules = {"mean": co.mean(), "sign_consensus": co.sign_consensus()}
    return comparison.compare(grid_task(PROBLEMS), rules, steps=4, **SMALL)
