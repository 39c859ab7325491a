"""Groups: which examples should make a row, and how many, if rows are to agree?

The data and the filter of the question of label noise, at one share of wrong labels.
Rows of ten examples that are drawn at random, have the same classes, one label, or are
alike; and random rows of one example to half of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import consensus_optax as co
from benchmarks.quality import _arranged, label_noise
from benchmarks.quality._question import Arm, Question, Setting, always, baselines


def arms(setting: Setting) -> Mapping[str, Arm]:
    """The filter, also where it lets nearly all pass, and the vote.

    With a running mean all rows that pass weigh the same; as its authors have it, the
    last one weighs a half.
    """
    del setting
    filters = {
        f"GAF {distance:g}": Arm(always(co.cosine_filter, distance))
        for distance in (1.0, 1.3, 1.6, 2.0)
    }
    others = {
        "GAF 1.3, running mean": Arm(always(co.cosine_filter, 1.3, average="mean")),
        "sign consensus 0.7": Arm(always(co.sign_consensus, 0.7)),
    }
    return {**baselines(), **filters, **others}


def _question(name: str, column: str, settings: tuple[Setting, ...]) -> Question:
    return Question(
        name=name,
        problem=label_noise.problem,
        settings=settings,
        arms=arms,
        rows=(0,),  # a matter of the setting
        size=label_noise.SIZE,
        shown=label_noise.SHOWN,
        pictured=("test_accuracy", "equal_rows"),
        column=column,
        data_alone=("data", "noise"),
    )


_COMMON = label_noise.setting_of("MNIST", noise=0.3)

QUESTIONS = (
    _question(
        "groups",
        "groups",
        tuple({**_COMMON, "groups": kind, "examples": 10} for kind in _arranged.KINDS),
    ),
    _question(
        "group_sizes",
        "examples",
        tuple({**_COMMON, "examples": size} for size in (1, 5, 20, 50)),
    ),
)
