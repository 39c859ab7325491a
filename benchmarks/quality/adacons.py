"""Adaptive Consensus: what do subspace weights change, and when do they say the mean?

Workers of one batch each (2411.03742); the open questions of the method: momentum,
clipping before and after, workers whose batches are small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

import consensus_optax as co
from benchmarks.quality import _data, _networks
from benchmarks.quality._question import (
    Arm,
    Problem,
    Question,
    Setting,
    Size,
    accuracy,
    always,
    baselines,
    drawn,
    grouped,
)

WIDTH = 64


def problem(setting: Setting, rows: int, seeds: Sequence[int], tuning: bool) -> Problem:
    """One row for each worker."""
    del rows, tuning
    data = _data.stacked([_data.split(seed) for seed in seeds])
    workers, each = int(setting["workers"]), int(setting["batch"])

    network = _networks.classifier(WIDTH)

    def scores(params: Any, train: Any, valid: Any, test: Any) -> dict[str, jax.Array]:
        found = {}
        for name, part in {"train": train, "valid": valid, "test": test}.items():
            logits = network.logits(params, part.pixels)
            found[f"{name}_accuracy"] = accuracy(logits, part.labels)
            found[f"{name}_loss"] = network.loss(params, part)
        return found

    def look(
        rule: Any, params: Any, batch: Any, losses: Any, stack: Any
    ) -> dict[str, jax.Array]:
        """How far the weights are from those of the mean: the cosine of the two."""
        del batch, losses
        ours, mean = (
            make.update(stack, make.init(params), params)[0]
            for make in (rule, co.mean())
        )
        length = lambda x: optax.tree.norm(x)
        cosine = optax.tree.vdot(ours, mean) / (length(ours) * length(mean))
        return {"cosine_to_mean": cosine}

    return Problem(
        init=network.init,
        rows=grouped(network.loss, workers, workers * each),
        batch=drawn(workers * each),
        scores=scores,
        data=data,
        units=np.arange(len(seeds)),
        look=look,
    )


def arms(setting: Setting) -> Mapping[str, Arm]:
    """With and without momentum and clipping."""
    workers = int(setting["workers"])
    weights = lambda **options: always(co.subspace_weighting, **options)
    after = lambda adam: co.skip_if_empty(
        optax.chain(optax.clip_by_global_norm(1.0), adam)
    )
    before = (lambda: co.clip_examples(1.0),)
    return {
        **baselines(),
        "AdaCons": Arm(weights()),
        "AdaCons, momentum 0.99": Arm(weights(momentum=0.99, num_rows=workers)),
        "AdaCons, rows clipped": Arm(weights(), ahead=before),
        "AdaCons, update clipped": Arm(weights(), around=after),
        "mean, update clipped": Arm(always(co.mean), around=after),
    }


QUESTION = Question(
    name="adacons",
    problem=problem,
    settings=tuple(
        {"workers": workers, "batch": batch, "workers, batch": f"{workers}, {batch}"}
        for workers, batch in ((8, 1), (8, 16), (32, 1))
    ),
    arms=arms,
    rows=(0,),  # one for each worker
    size=Size(steps=200, seeds=6, tuning_seeds=2, rates=(1e-3, 3e-3, 1e-2)),
    shown={
        "test_accuracy": "Test accuracy, %",
        "train_loss": "Training loss",
        "cosine_to_mean": "Cosine of the update with the mean, %",
    },
    pictured=("test_accuracy", "cosine_to_mean"),
    column="workers, batch",
    metric="valid_loss",
    higher_is_better=False,
)
