"""Label noise: does agreement keep a network from learning wrong labels?

Symmetric noise, as in the paper of Gradient Agreement Filtering (2412.18052); rates and
rows are chosen by accuracy on noisy labels, since nobody has others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
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
    baselines,
    drawn,
    grouped,
)

BATCH, WIDTH = 100, 64
_TRACE = 1e-6  # far below what a decision hangs on


def problem(setting: Setting, rows: int, seeds: Sequence[int], tuning: bool) -> Problem:
    """Batches of the same size for every number of rows: equal passes over the data."""
    del tuning
    data = _data.stacked([_data.split(seed, setting["noise"]) for seed in seeds])

    network = _networks.classifier(WIDTH)

    def scores(params: Any, train: Any, valid: Any, test: Any) -> dict[str, jax.Array]:
        said = lambda part: network.logits(params, part.pixels)
        wrong = train.labels != train.truth
        repeated = said(train).argmax(-1) == train.labels
        share = lambda which: (repeated & which).sum() / jnp.maximum(which.sum(), 1)
        return {
            "test_accuracy": accuracy(said(test), test.truth),
            "valid_accuracy": accuracy(said(valid), valid.labels),
            "right_learned": share(~wrong),
            "wrong_learned": share(wrong),
        }

    def look(
        rule: Any, params: Any, batch: Any, losses: jax.Array, stack: Any
    ) -> dict[str, jax.Array]:
        """Which examples a weighting leaves out, and whether their labels are wrong."""
        if not isinstance(rule.rule, co.Weighting):
            return {}
        used = coefficients(rule, params, losses, stack) > 0
        used = jnp.repeat(used, BATCH // rows)
        wrong = batch.labels != batch.truth
        share = lambda of, which: (of & which).sum() / jnp.maximum(of.sum(), 1)
        return {
            "left_out": 1 - used.mean(),
            "left_out_wrong": share(~used, wrong),  # precision
            "wrong_left_out": share(wrong, ~used),  # recall
        }

    return Problem(
        init=network.init,
        rows=grouped(network.loss, rows, BATCH),
        batch=arranged(setting.get("groups", "random")),
        scores=scores,
        data=data,
        units=np.arange(len(seeds)),
        look=look,
    )


def coefficients(rule: Any, params: Any, losses: jax.Array, rows: Any) -> jax.Array:
    """What a weighting multiplies its rows by, (B,): its update of marks beside them.

    The marks are too small to decide anything.
    """
    count = len(losses)
    marked = {"rows": rows, "marks": _TRACE * jnp.eye(count)}
    begin = {"rows": params, "marks": jnp.zeros(count)}
    update, _ = rule.update(marked, rule.init(begin), begin, values=losses)
    return update["marks"] / _TRACE


def arranged(groups: str) -> Any:
    """Batches whose neighbours, which make a row, are alike or not."""
    draw = drawn(BATCH)
    keys = {
        "one label": lambda batch: batch.labels,
        "alike": lambda batch: batch.pixels @ _direction(batch.pixels),
    }

    def batch(train: Any, key: jax.Array, step: jax.Array) -> tuple[Any, None]:
        found, _ = draw(train, key, step)
        if groups != "random":
            order = jnp.argsort(keys[groups](found), stable=True)
            found = jax.tree.map(lambda x: x[order], found)
        return found, None

    return batch


def _direction(pixels: jax.Array) -> jax.Array:
    """Along which the examples of a batch differ most."""
    centred = pixels - pixels.mean(0)
    return jnp.linalg.eigh(centred.T @ centred)[1][:, -1]


def arms(setting: Setting) -> Mapping[str, Arm]:
    """The filter at the paper's thresholds and beyond; other cures for outliers."""
    del setting
    filters = {
        f"GAF {distance:g}": Arm(always(co.cosine_filter, distance))
        for distance in (0.97, 1.0, 1.3)
    }
    return {
        **baselines(rows=4),
        **filters,
        "sign consensus 0.7": Arm(always(co.sign_consensus, 0.7)),
        "small losses": Arm(
            lambda rows: co.keep_smallest_losses(round(0.6 * rows)), rows=(20, 100)
        ),
        "median": Arm(always(co.median)),
        "geometric median": Arm(always(co.geometric_median)),
        "GAF 1, soft": Arm(always(co.cosine_filter, 1.0, temperature=0.1)),
    }


SIZE = Size(steps=300, seeds=6, tuning_seeds=2, rates=(1e-3, 3e-3, 1e-2))
SHOWN = {
    "test_accuracy": "Test accuracy, %",
    "right_learned": "Training accuracy where the label is right, %",
    "wrong_learned": "Training accuracy where the label is wrong (memorized), %",
    "left_out": "Examples left out, %",
    "left_out_wrong": "Wrong labels among what is left out, %",
    "wrong_left_out": "Left out of what has a wrong label, %",
}

QUESTION = Question(
    name="label_noise",
    problem=problem,
    settings=tuple({"noise": share} for share in (0.0, 0.3, 0.6)),
    arms=arms,
    rows=(4, 20),
    size=SIZE,
    shown=SHOWN,
    pictured=("test_accuracy", "wrong_learned"),
    column="noise",
    data_alone=("noise",),
    tuned_at=lambda setting: {"noise": 0.3},
    relative=True,
)
