"""Structure of gradients: how do examples agree, over training, width, batch size?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

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
    drawn,
    grouped,
)


def problem(setting: Setting, rows: int, seeds: Sequence[int], tuning: bool) -> Problem:
    """Rows are single examples."""
    del rows, tuning
    width, batch_size = int(setting["width"]), int(setting["batch"])

    network = _networks.classifier(width)

    def scores(params: Any, train: Any, valid: Any, test: Any) -> dict[str, jax.Array]:
        said = lambda part: accuracy(network.logits(params, part.pixels), part.labels)
        return {
            "train_accuracy": said(train),
            "valid_accuracy": said(valid),
            "test_accuracy": said(test),
        }

    def look(
        rule: Any, params: Any, batch: Any, losses: Any, stack: Any
    ) -> dict[str, jax.Array]:
        del rule, batch, losses
        consensus = co.sign_consensus(0.7)
        _, state = consensus.update(stack, consensus.init(params), params)
        gramian = co.diagnostics.gramian(stack)
        scale = co.diagnostics.noise_scale(gramian)
        return {
            "coherence": co.diagnostics.coherence(gramian),
            "conflicting_share": co.diagnostics.conflicting_share(gramian),
            "signal": scale.gradient_squared / scale.noise_trace,
            "quorum_ratio": state.consensus_ratio,
        }

    return Problem(
        init=network.init,
        rows=grouped(network.loss, batch_size, batch_size),
        batch=drawn(batch_size),
        scores=scores,
        data=_data.stacked([_data.split(seed) for seed in seeds]),
        units=np.arange(len(seeds)),
        look=look,
    )


def arms(setting: Setting) -> Mapping[str, Arm]:
    """Plain training is looked at."""
    del setting
    return {"mean": Arm(always(co.mean))}


QUESTION = Question(
    name="structure",
    problem=problem,
    settings=tuple(
        {"width": width, "batch": batch, "width, batch": f"{width}, {batch}"}
        for width, batch in ((16, 64), (64, 64), (256, 64), (64, 16), (64, 256))
    ),
    arms=arms,
    rows=(0,),
    size=Size(steps=600, seeds=8, tuning_seeds=1, rates=(3e-3,), evaluations=30),
    shown={
        "coherence": "Coherence (1: rows are unrelated)",
        "conflicting_share": "Pairs that conflict, %",
        "signal": "Signal to noise of one example (1 / noise scale), %",
        "quorum_ratio": "Coordinates with a quorum of 0.7, %",
        "test_accuracy": "Test accuracy, %",
    },
    pictured=("coherence", "conflicting_share", "quorum_ratio"),
    column="width, batch",
    over_steps=True,
)
