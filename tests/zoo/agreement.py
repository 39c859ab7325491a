"""Agreement rules beyond the seeds: folds, filters of the GAF family, AdaSum."""

import jax

import consensus_optax as co
from tests import _laws as laws
from tests import _reference_agreement as ref
from tests._reference import by_leaf, whole_model
from tests.zoo._row import Row

KEY = jax.random.key(3)
HULL = (
    laws.scales_with_the_rows,
    laws.stays_in_the_hull,
    laws.equal_rows_give_that_row,
)
ANY_ORDER = (laws.order_is_irrelevant, *HULL)

FOLDS = [
    Row(
        co.sign_vote,
        by_leaf(ref.sign_vote("unit")),
        (
            laws.order_is_irrelevant,
            laws.ignores_the_scale_of_each_row,
            laws.weights_are_counts,
        ),
        empty=("zero", "opposite", "tie"),
    ),
    Row(
        co.sign_vote,
        by_leaf(ref.sign_vote("vote")),
        (
            laws.order_is_irrelevant,
            laws.ignores_the_scale_of_each_row,
            laws.weights_are_counts,
        ),
        options={"magnitude": "vote"},
        empty=("zero", "opposite", "tie"),
    ),
    Row(
        co.sign_vote,
        by_leaf(ref.sign_vote("mean")),
        (
            laws.order_is_irrelevant,
            laws.scales_with_the_rows,
            laws.equal_rows_give_that_row,
            laws.one_row_gives_that_row,
            laws.weights_are_counts,
        ),
        options={"magnitude": "mean"},
        empty=("zero", "opposite", "tie"),
    ),
    Row(
        co.signal_to_noise,
        by_leaf(ref.signal_to_noise(1.0, "hard")),
        (
            laws.order_is_irrelevant,
            laws.scales_with_the_rows,
            laws.equal_rows_give_that_row,
            laws.one_row_gives_that_row,
        ),
        empty=("zero", "opposite", "tie"),
        thresholds=("min_ratio",),
    ),
    Row(
        co.sand_mask,
        by_leaf(ref.sand_mask(10.0, 1.0, 0.5, rescale=True)),
        (
            laws.order_is_irrelevant,
            laws.equal_rows_give_that_row,
            laws.one_row_gives_that_row,
        ),
        empty=("zero", "opposite", "tie"),
        thresholds=("k", "gamma", "min_agreement"),
        rtol=1e-5,  # the variance is a difference of sums of squares
    ),
    Row(
        co.graddrop,
        ref.graddrop(0.25, KEY),
        (
            laws.order_is_irrelevant,
            laws.scales_with_the_rows,
            laws.one_row_gives_that_row,
        ),
        options={"leak": 0.25, "key": KEY},
        empty=("zero",),
    ),
]

FILTERS = [
    Row(
        co.previous_update_filter,
        whole_model(ref.everyone),
        (*ANY_ORDER, laws.one_row_gives_that_row, laws.weights_are_counts),
        thresholds=("max_distance",),
    ),
    Row(
        co.neighbor_filter,
        whole_model(ref.neighbor_filter(0.97)),
        HULL,
        empty=("zero", "one row"),
        thresholds=("max_distance",),
    ),
    Row(
        co.neighbor_filter,
        by_leaf(ref.neighbor_filter(0.6)),
        (laws.scales_with_the_rows, laws.equal_rows_give_that_row),
        options={"max_distance": 0.6},
        per_leaf=True,
        empty=("zero", "one row"),
        thresholds=("max_distance",),
    ),
    Row(
        co.sign_filter,
        whole_model(ref.sign_filter(0.5)),
        ANY_ORDER,
        empty=("zero", "opposite", "tie", "one row"),
        thresholds=("min_agreement",),
    ),
    Row(
        co.l2_filter,
        whole_model(ref.l2_filter(2.0, "medoid", relative=True)),
        (*HULL, laws.one_row_gives_that_row),
        thresholds=("max_distance",),
    ),
    Row(
        co.l2_filter,
        whole_model(ref.l2_filter(1.2, "mean", relative=True)),
        (*ANY_ORDER, laws.one_row_gives_that_row),
        options={"max_distance": 1.2, "reference": "mean"},
        thresholds=("max_distance",),
    ),
    Row(
        co.cluster_mean,
        whole_model(ref.cluster_mean(2, 2, 10)),
        HULL,
        empty=("one row",),
    ),
    Row(
        co.adasum,
        by_leaf(ref.adasum),
        (laws.scales_with_the_rows, laws.one_row_gives_that_row),
        per_leaf=True,
        empty=("zero", "tie"),
        rtol=1e-4,  # in small leaves rows nearly cancel, level upon level
    ),
    Row(
        co.adasum,
        whole_model(ref.adasum),
        (
            laws.scales_with_the_rows,
            laws.one_row_gives_that_row,
            laws.equal_rows_give_that_row,
            laws.weights_say_presence_only,
        ),
        empty=("zero", "tie"),
    ),
]

AGREEMENT = [*FOLDS, *FILTERS]
