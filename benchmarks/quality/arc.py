"""The seed: does consensus training help on ARC, and does it bear more weight decay?

Every task is a unit: errors are over tasks, seeds of a task are averaged. Rates are
chosen on tasks that serve nothing else, by their test grids.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import consensus_optax as co
from benchmarks.quality import _networks
from benchmarks.quality._question import (
    Arm,
    Problem,
    Question,
    Setting,
    Size,
    always,
    baselines,
)
from consensus_optax import tasks, training

TASKS, TUNING_TASKS, WIDTH, DEPTH = 100, 11, 16, 3


@functools.cache
def _tasks(count: int) -> tasks.Task:
    return tasks.arc(num_tasks=count, max_size=10)


def problem(setting: Setting, rows: int, seeds: Sequence[int], tuning: bool) -> Problem:
    """One row for each training pair of a task, all of them in every step."""
    del setting, rows
    which = slice(TASKS, None) if tuning else slice(0, TASKS)
    every = _tasks(TASKS + TUNING_TASKS)
    names = every.problems[which]
    units = np.tile(np.arange(len(names)), len(seeds))
    of_units = lambda part: jax.tree.map(lambda x: x[which][units], part)
    init, apply = _networks.of_flax(
        lambda rngs: training.SmallCNN(
            every.train.inputs.shape[-1],
            every.num_classes,
            width=WIDTH,
            depth=DEPTH,
            rngs=rngs,
        )
    )

    def loss(params: Any, batch: tasks.Examples) -> jax.Array:
        logits = apply(params, batch.inputs, batch.inside)
        return tasks.example_losses(logits, batch.targets).mean()

    def scores(params: Any, train: Any, valid: Any, test: Any) -> dict[str, jax.Array]:
        del valid
        of = lambda part: tasks.scores(apply(params, part.inputs, part.inside), part)
        on_train, on_test = of(train), of(test)
        return {
            "train_accuracy": on_train.accuracy,
            "test_accuracy": on_test.accuracy,
            "test_solved": on_test.solved,
        }

    test = of_units(every.test)
    return Problem(
        init=init,
        rows=co.per_example_value_and_grad(loss),
        batch=lambda train, key, step: (train, jnp.asarray(train.weights)),
        scores=scores,
        data=(of_units(every.train), jnp.zeros(len(units)), test),
        units=units,
    )


def arms(setting: Setting) -> Mapping[str, Arm]:
    """Quorums and magnitudes."""
    few = {
        f"min, {quorum:g}": Arm(always(co.sign_consensus, quorum))
        for quorum in (0.6, 0.8, 1.0)
    }
    if setting["weight_decay"]:
        return {"mean": Arm(always(co.mean)), **few}
    others = {
        f"{magnitude}, 1": Arm(always(co.sign_consensus, 1.0, magnitude))
        for magnitude in ("mean", "geometric")
    }
    return {**baselines(), **few, **others}


QUESTION = Question(
    name="arc",
    problem=problem,
    settings=tuple({"weight_decay": decay} for decay in (0.0, 0.1, 1.0)),
    arms=arms,
    rows=(0,),  # as many as a task has pairs
    size=Size(
        steps=200,
        seeds=5,
        tuning_seeds=1,
        rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        evaluations=4,
    ),
    shown={
        "test_accuracy": "Test pixels, %",
        "test_solved": "Solved test grids, %",
        "train_accuracy": "Training pixels, %",
        "consensus_ratio": "Consensus ratio of the last quarter, %",
    },
    pictured=("test_accuracy", "train_accuracy"),
    column="weight_decay",
    data_alone=("weight_decay",),
    metric="test_accuracy",
    tuned_at=lambda setting: {"weight_decay": 0.0},
)
