"""Folds: statistics that merge in any order."""

import consensus_optax as co
from tests import _laws as laws
from tests._reference import and_mask, by_leaf, consensus_training
from tests._reference_agreement import example_moments
from tests.zoo._row import Row

ALWAYS = (
    laws.order_is_irrelevant,
    laws.one_row_gives_that_row,
    laws.equal_rows_give_that_row,
    laws.weights_are_counts,
)
CONTRADICTIONS = ("zero", "opposite", "tie")

FOLDS = [
    Row(
        co.sign_consensus,
        by_leaf(consensus_training),
        (
            *ALWAYS,
            laws.scales_with_the_rows,
            laws.no_row_has_a_smaller_entry,
            laws.no_row_disagrees_in_sign,
            laws.weights_say_presence_only,
            laws.consensus_of_consensuses,
        ),
        empty=CONTRADICTIONS,
        thresholds=("quorum",),
    ),
    Row(
        co.sign_consensus,
        by_leaf(and_mask(1.0, "min", rescale=True)),
        (laws.order_is_irrelevant, laws.scales_with_the_rows),
        options={"rescale": True},
        empty=CONTRADICTIONS,
        thresholds=("quorum",),
    ),
    Row(
        co.sign_consensus,
        by_leaf(and_mask(0.6, "min")),
        (*ALWAYS, laws.scales_with_the_rows),
        options={"quorum": 0.6},
        empty=CONTRADICTIONS,
        thresholds=("quorum",),
    ),
    Row(
        co.sign_consensus,
        by_leaf(and_mask(1.0, "mean")),
        (*ALWAYS, laws.scales_with_the_rows, laws.no_row_disagrees_in_sign),
        options={"magnitude": "mean"},
        empty=CONTRADICTIONS,
        thresholds=("quorum",),
    ),
    Row(
        co.sign_consensus,
        by_leaf(and_mask(0.75, "agreeing_mean", rescale=True)),
        (laws.order_is_irrelevant, laws.scales_with_the_rows, laws.weights_are_counts),
        options={"quorum": 0.75, "magnitude": "agreeing_mean", "rescale": True},
        empty=CONTRADICTIONS,
        thresholds=("quorum",),
    ),
    Row(
        co.sign_consensus,
        by_leaf(and_mask(1.0, "geometric")),
        (*ALWAYS, laws.scales_unless_tiny, laws.no_row_disagrees_in_sign),
        options={"magnitude": "geometric"},
        rtol=5e-6,  # exp of means of logs near 23, each rounded to 1e-6
        empty=CONTRADICTIONS,
        thresholds=("quorum",),
    ),
    Row(  # the first step, as references are of one; 1 - b2 has all digits
        co.scale_by_example_moments,
        by_leaf(example_moments(1.0)),
        (laws.order_is_irrelevant, laws.weights_are_counts),
        options={"b1": 0.5, "b2": 0.75},
        empty=("zero",),
        thresholds=("b1", "b2", "variance"),
    ),
    Row(
        co.scale_by_example_moments,
        by_leaf(example_moments(0.25)),
        (laws.order_is_irrelevant, laws.weights_are_counts),
        options={"b1": 0.5, "b2": 0.75, "variance": 0.25},
        empty=("zero",),
        thresholds=("b1", "b2", "variance"),
    ),
]
