"""Label noise: does agreement keep a network from learning wrong labels?

Symmetric noise, as in the paper of Gradient Agreement Filtering (2412.18052), on three
data sets; rates and rows are chosen by accuracy on noisy labels, since nobody has
others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import consensus_optax as co
from benchmarks.quality import _arranged, _data, _networks
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

BATCH = 100
WIDTHS = {64: 64, 784: 32}  # by pixels: hidden layers of 9 000 and 26 000 weights
_TRACE = 1e-6  # far below what a decision hangs on


def setting_of(data: str, **more: Any) -> Setting:
    """With the number of pixels: data sets that share it share programs."""
    return {"data": data, "pixels": _data.SETS[data][-1], **more}


def problem(setting: Setting, rows: int, seeds: Sequence[int], tuning: bool) -> Problem:
    """Batches of the same size for every number of rows: equal passes over the data."""
    del tuning
    size = setting.get("examples", BATCH // max(rows, 1))  # of a row
    pixels, groups = setting["pixels"], setting.get("groups", "random")
    splits = [_data.split(seed, setting["noise"], setting["data"]) for seed in seeds]

    network = _networks.classifier(WIDTHS[pixels], pixels)
    arranged = _arranged.by(groups, network, size)
    of_groups = grouped(network.loss, BATCH // size, BATCH)

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
        if not isinstance(rule.rule, co.Weighting):
            return {}
        batch = arranged(params, batch)
        weights = coefficients(rule, params, losses, stack)
        return left_out(weights, batch.labels != batch.truth)

    return Problem(
        init=network.init,
        rows=lambda params, batch: of_groups(params, arranged(params, batch)),
        batch=drawn(BATCH),
        scores=scores,
        data=_data.stacked(splits),
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


def left_out(weights: jax.Array, wrong: jax.Array) -> dict[str, jax.Array]:
    """Whom a weighting leaves out, and whether it is whose label is wrong.

    Args:
      weights: of the rows, (B,).
      wrong: of the examples, (B n,), those of a row side by side.

    Returns:
      Shares; nan where there is nothing to take a share of.
    """
    share = lambda part, whole: part.sum() / whole.sum()
    of_examples = jnp.repeat(weights, len(wrong) // len(weights))
    out = (of_examples <= 0).astype(jnp.float32)
    wrong = wrong.astype(jnp.float32)
    return {
        "left_out": out.mean(),
        "left_out_wrong": share(out * wrong, out),  # precision
        "wrong_left_out": share(out * wrong, wrong),  # recall
        "wrong_weight": share(of_examples * wrong, of_examples),
        "equal_rows": weights.sum() ** 2 / (weights**2).sum() / len(weights),
    }


def arms(setting: Setting) -> Mapping[str, Arm]:
    """The filter at the paper's thresholds and beyond; other cures for outliers."""
    del setting
    filters = {
        f"GAF {distance:g}": Arm(always(co.cosine_filter, distance))
        for distance in (0.9, 0.97, 1.0, 1.3, 2.0)
    }
    soft = {
        f"GAF {distance:g}, soft": Arm(
            always(co.cosine_filter, distance, temperature=0.1)
        )
        for distance in (0.97, 1.0)
    }
    votes = {
        f"sign consensus {quorum:g}": Arm(always(co.sign_consensus, quorum))
        for quorum in (0.6, 0.8)
    }
    return {
        **baselines(rows=4),
        **filters,
        **soft,
        **votes,
        "small losses": Arm(
            lambda rows: co.keep_smallest_losses(round(0.6 * rows)), rows=(20, 100)
        ),
        "median": Arm(always(co.median), rows=(4, 20)),  # of 100: dear
        "geometric median": Arm(always(co.geometric_median)),
    }


SIZE = Size(
    steps=300,
    seeds=10,
    tuning_seeds=2,
    rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    evaluations=1,
    looks=10,
)
SHOWN = {
    "test_accuracy": "Test accuracy, %",
    "right_learned": "Training accuracy where the label is right, %",
    "wrong_learned": "Training accuracy where the label is wrong (memorized), %",
    "left_out": "Examples left out, %",
    "left_out_wrong": "Wrong labels among what is left out (precision), %",
    "wrong_left_out": "Left out of what has a wrong label (recall), %",
    "wrong_weight": "Weight of wrong labels in the update, %",
    "equal_rows": "Rows of equal weight that would be as many, to all, %",
}


def _setting(data: str, noise: float) -> Setting:
    return setting_of(data, noise=noise, **{"data, noise": f"{data}, {noise:.0%}"})


QUESTION = Question(
    name="label_noise",
    problem=problem,
    settings=tuple(
        _setting(data, noise) for data in _data.SETS for noise in (0.0, 0.3, 0.6)
    ),
    arms=arms,
    rows=(2, 4, 20, 100),
    size=SIZE,
    shown=SHOWN,
    pictured=("test_accuracy", "wrong_learned"),
    column="data, noise",
    data_alone=("data", "noise", "data, noise"),
    tuned_at=lambda setting: _setting(setting["data"], 0.3),
    relative=True,
)
