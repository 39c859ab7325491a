"""Weightings: decisions on inner products of rows."""

import consensus_optax as co
from tests import _laws as laws
from tests._reference import (
    adacons,
    by_leaf,
    clipped_by_leaf,
    clipped_sum,
    gaf,
    mean,
    normalized_mean,
    whole_model,
)
from tests.zoo._row import Row

ADACONS = (
    laws.order_is_irrelevant,
    laws.is_zero_where_rows_cancel,
    laws.equal_rows_give_their_direction,
    laws.one_row_gives_its_direction,
)
# C is lowered by what rounding may take of a sum of six rows, 50 units, and norms are
# rounded up: of a few terms, whose lengths add up to some times the row's, by 200.
CLIPPED = 2e-5
NOTHING_ACCEPTED = ("zero", "one row", "outlier first")

WEIGHTINGS = [
    Row(
        co.mean,
        whole_model(mean),
        (
            laws.order_is_irrelevant,
            laws.scales_with_the_rows,
            laws.is_linear,
            laws.is_zero_where_rows_cancel,
            laws.stays_in_the_hull,
            laws.equal_rows_give_that_row,
            laws.one_row_gives_that_row,
            laws.weights_are_counts,
        ),
    ),
    Row(
        co.normalized_mean,
        whole_model(normalized_mean),
        (
            laws.order_is_irrelevant,
            laws.ignores_the_scale_of_each_row,
            laws.is_never_longer_than_one,
            laws.is_zero_where_rows_cancel,
            laws.equal_rows_give_their_direction,
            laws.one_row_gives_its_direction,
            laws.weights_are_counts,
        ),
        empty=("zero",),
    ),
    Row(
        co.clipped_sum,
        whole_model(clipped_sum(1.5, 12)),
        (
            laws.order_is_irrelevant,
            laws.is_never_longer_than_one,
            laws.is_zero_where_rows_cancel,
        ),
        options={"max_norm": 1.5, "divisor": 12.0},
        thresholds=("max_norm",),
        rtol=CLIPPED,
        weights_multiply=True,
    ),
    Row(
        co.clipped_sum,
        whole_model(clipped_sum(1.5, 12, stability=0.1)),
        (
            laws.order_is_irrelevant,
            laws.is_never_longer_than_one,
            laws.is_zero_where_rows_cancel,
        ),
        options={
            "max_norm": 1.5,
            "divisor": 12.0,
            "clipping": "automatic",
            "stability": 0.1,
        },
        thresholds=("max_norm", "stability"),
        rtol=CLIPPED,
        weights_multiply=True,
    ),
    Row(
        co.clipped_sum,
        clipped_by_leaf(1.5, 12),
        (laws.order_is_irrelevant, laws.is_zero_where_rows_cancel),
        options={"max_norm": 1.5, "divisor": 12.0},
        thresholds=("max_norm",),
        per_leaf=True,
        rtol=CLIPPED,
        rounding=("opposite", "tie"),  # weights that are no powers of 2
        weights_multiply=True,
    ),
    Row(
        co.cosine_filter,
        whole_model(gaf(0.97)),
        (
            laws.scales_with_the_rows,
            laws.stays_in_the_hull,
            laws.equal_rows_give_that_row,
            laws.weights_say_presence_only,
        ),
        empty=NOTHING_ACCEPTED,
        thresholds=("max_distance",),
    ),
    Row(
        co.cosine_filter,
        whole_model(gaf(0.6, average="mean")),
        (
            laws.scales_with_the_rows,
            laws.stays_in_the_hull,
            laws.equal_rows_give_that_row,
        ),
        options={"max_distance": 0.6, "average": "mean"},
        empty=NOTHING_ACCEPTED,
        thresholds=("max_distance",),
    ),
    Row(
        co.cosine_filter,
        by_leaf(gaf(0.97)),
        (laws.scales_with_the_rows, laws.equal_rows_give_that_row),
        per_leaf=True,
        empty=NOTHING_ACCEPTED,
        thresholds=("max_distance",),
    ),
    Row(
        co.cosine_filter,
        whole_model(gaf(0.9, temperature=0.2)),
        (
            laws.scales_with_the_rows,
            laws.stays_in_the_hull,
            laws.equal_rows_give_that_row,
        ),
        options={"max_distance": 0.9, "temperature": 0.2},
        empty=("zero", "one row"),
        thresholds=("max_distance", "temperature"),
    ),
    Row(
        co.subspace_weighting,
        whole_model(adacons()),
        (*ADACONS, laws.ignores_the_scale_unless_tiny, laws.weights_are_counts),
        empty=("zero",),
    ),
    Row(
        co.subspace_weighting,
        whole_model(adacons(momentum=0.9)),
        (*ADACONS, laws.ignores_the_scale_unless_tiny),
        options={"momentum": 0.9, "num_rows": ...},
        empty=("zero",),
        thresholds=("momentum",),
    ),
    Row(
        co.subspace_weighting,
        whole_model(adacons(rescale=True)),
        (
            laws.order_is_irrelevant,
            laws.is_zero_where_rows_cancel,
            laws.scales_unless_tiny,
            laws.equal_rows_give_that_row,
            laws.one_row_gives_that_row,
            laws.weights_are_counts,
        ),
        options={"length": "mean_norm"},
        empty=("zero",),
    ),
    Row(
        co.subspace_weighting,
        by_leaf(adacons()),
        (
            laws.order_is_irrelevant,
            laws.is_zero_where_rows_cancel,
            laws.weights_are_counts,
        ),
        per_leaf=True,
        empty=("zero",),
    ),
]
