"""Groups: which examples should make a row, if rows are to agree?

The data and the filter of the question of label noise, at one share of wrong labels;
ten rows of ten examples each, which are drawn at random, have one label, or look alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import consensus_optax as co
from benchmarks.quality import label_noise
from benchmarks.quality._question import Arm, Question, Setting, always, baselines


def arms(setting: Setting) -> Mapping[str, Arm]:
    """The filter and the vote; the mean of all rows does not know of groups."""
    del setting
    return {
        **baselines(),
        "GAF 0.97": Arm(always(co.cosine_filter, 0.97)),
        "GAF 1": Arm(always(co.cosine_filter, 1.0)),
        "GAF 1.3": Arm(always(co.cosine_filter, 1.3)),
        "sign consensus 0.7": Arm(always(co.sign_consensus, 0.7)),
    }


QUESTION = Question(
    name="groups",
    problem=label_noise.problem,
    settings=tuple(
        {"noise": 0.3, "groups": groups} for groups in ("random", "one label", "alike")
    ),
    arms=arms,
    rows=(10,),
    size=label_noise.SIZE,
    shown=label_noise.SHOWN,
    pictured=("test_accuracy", "left_out_wrong"),
    column="groups",
    data_alone=("noise",),
)
