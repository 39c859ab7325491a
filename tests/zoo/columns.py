"""Columns: rules that see one coordinate of all rows."""

import consensus_optax as co
from tests import _laws as laws
from tests import _reference_robust as robust
from tests._reference import by_leaf
from tests.zoo._row import Row

OF_POSITION = (
    laws.order_is_irrelevant,
    laws.scales_with_the_rows,
    laws.shifts_with_the_rows,
    laws.equal_rows_give_that_row,
    laws.one_row_gives_that_row,
)

COLUMNS = [
    Row(
        co.median,
        by_leaf(robust.median),
        (*OF_POSITION, laws.weights_are_counts),
        empty=("zero",),
    ),
    Row(
        co.trimmed_mean,
        by_leaf(robust.trimmed_mean(1)),
        OF_POSITION,
        options={"trim": 1},
        empty=("zero",),
        least_rows=3,
    ),
    Row(
        co.winsorized_mean,
        by_leaf(robust.winsorized_mean(0.3)),
        OF_POSITION,
        options={"quantile": 0.3},
        empty=("zero",),
    ),
    Row(
        co.mean_around_median,
        by_leaf(robust.mean_around_median(1)),
        OF_POSITION,
        options={"num_byzantine": 1},
        empty=("zero",),
        least_rows=3,
    ),
]
