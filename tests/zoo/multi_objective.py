"""Multi-objective rules: steps that no row, or no row that can be helped, opposes."""

import jax
import jax.numpy as jnp

import consensus_optax as co
from tests import _laws as laws
from tests import _reference_multi_objective as ref
from tests import _reference_task_weights as ref_weights
from tests._reference import whole_model
from tests._reference_surgery import grad_vac, pcgrad
from tests.zoo._row import Row

KEY = jax.random.key(11)
ANY_ORDER = (laws.order_is_irrelevant, laws.scales_with_the_rows)
ITSELF = (laws.equal_rows_give_that_row, laws.one_row_gives_that_row)
CANCEL = laws.is_zero_where_rows_cancel
CANCELLING = ("zero", "opposite", "tie", "rank two")
PREFERENCE = [2, 1, 0.5, 1, 1, 3]
# A row a thousand times longer hides the other rows' eigenvalues in float32, and rows
# of low rank are so up to float32's rounding, which the loops see. (Rows of integers
# that depend on each other stand in tests/test_multi_objective_values.py.)
LOW_RANK = ("rank one", "rank two")
HIDDEN = ("outlier", "outlier first", *LOW_RANK)
# Around a minimum known to rounding its place is known to the root of that; most rules
# combine rows there, where it hardly matters which, and one clips the place itself.
ROOT = float(jnp.finfo(jnp.float32).eps) ** 0.5


MULTI_OBJECTIVE = [
    Row(
        co.mgda,
        whole_model(ref.mgda),
        (
            *ANY_ORDER,
            *ITSELF,
            CANCEL,
            laws.opposes_no_row,
            laws.stays_in_the_hull,
            laws.weights_say_presence_only,
            laws.weights_are_counts,
        ),
        empty=("zero row", *CANCELLING),
        rtol=1e-4,
    ),
    Row(
        co.upgrad,
        whole_model(ref.upgrad()),
        (*ANY_ORDER, *ITSELF, CANCEL, laws.opposes_no_row_of_like_lengths),
        empty=CANCELLING,
        rtol=1e-4,
    ),
    Row(
        co.dual_projection,
        whole_model(ref.dual_projection()),
        (*ANY_ORDER, *ITSELF, CANCEL, laws.opposes_no_row_of_like_lengths),
        empty=CANCELLING,
        rtol=1e-4,
    ),
    Row(
        co.cagrad,
        whole_model(ref.cagrad(0.5)),
        (*ANY_ORDER, laws.weights_are_counts),
        empty=("zero",),
        thresholds=("c",),
        rtol=1e-4,
    ),
    Row(
        co.cagrad,
        whole_model(ref.cagrad(1.5)),
        (*ANY_ORDER, CANCEL, laws.opposes_no_row, laws.weights_are_counts),
        options={"c": 1.5},
        empty=CANCELLING,
        rtol=1e-4,
    ),
    Row(
        co.cagrad,
        whole_model(ref.cagrad(0.5, clip=True)),
        (*ANY_ORDER, laws.weights_are_counts),
        options={"clip": True},
        empty=("zero",),
        thresholds=("c",),
        rtol=3 * ROOT,
    ),
    Row(
        co.pcgrad,
        whole_model(pcgrad(KEY)),
        (laws.scales_with_the_rows, CANCEL, laws.one_row_gives_that_row),
        options={"key": KEY},
        rtol=1e-5,
    ),
    Row(
        co.grad_vac,
        whole_model(grad_vac(KEY)),
        (laws.scales_with_the_rows, CANCEL, laws.one_row_gives_that_row),
        options={"key": KEY, "num_rows": ...},
        thresholds=("decay",),
        rtol=1e-5,
    ),
    Row(
        co.imtl_g,
        whole_model(ref.imtl_g),
        (
            *ANY_ORDER,
            *ITSELF,
            CANCEL,
            laws.weights_say_presence_only,
            laws.weights_are_counts,
        ),
        empty=("zero", "opposite", "tie"),
        rtol=1e-4,
        rounding=HIDDEN,
    ),
    Row(
        co.aligned_mtl,
        whole_model(ref.aligned_mtl()),
        (*ANY_ORDER, CANCEL, laws.one_row_gives_that_row),
        empty=("zero", "opposite", "tie"),
        rtol=1e-4,
        rounding=HIDDEN,
    ),
    Row(
        co.aligned_mtl,
        whole_model(ref.aligned_mtl("median")),
        (*ANY_ORDER, CANCEL, laws.one_row_gives_that_row),
        options={"scale": "median"},
        empty=("zero", "opposite", "tie"),
        rtol=1e-4,
        rounding=HIDDEN,
    ),
    Row(
        co.nash_mtl,
        whole_model(ref.nash_mtl(1.0)),
        (
            laws.order_is_irrelevant,
            CANCEL,
            laws.opposes_no_row,
            laws.ignores_the_scale_of_each_row,
            laws.is_never_longer_than_one,
        ),
        empty=CANCELLING,
        thresholds=("max_norm",),
        rtol=1e-4,
    ),
    Row(
        co.nash_mtl,
        whole_model(ref.nash_mtl(None)),
        (
            laws.order_is_irrelevant,
            CANCEL,
            laws.opposes_no_row,
            laws.ignores_the_scale_of_each_row,
        ),
        options={"max_norm": None},
        empty=CANCELLING,
        rtol=1e-4,
    ),
    Row(
        co.conflict_free,
        whole_model(ref.conflict_free()),
        (*ANY_ORDER, CANCEL, laws.one_row_gives_that_row),
        empty=("zero", "opposite", "tie"),
        rtol=1e-4,
        rounding=LOW_RANK,
    ),
    Row(
        co.fairgrad,
        whole_model(ref.fairgrad(2.0)),
        (laws.order_is_irrelevant, CANCEL, laws.opposes_no_row),
        empty=CANCELLING,
        thresholds=("alpha",),
        rtol=1e-4,
    ),
    Row(
        co.random_weights,
        whole_model(ref_weights.random_weights(KEY)),
        (laws.scales_with_the_rows, laws.is_linear, laws.stays_in_the_hull, *ITSELF),
        options={"key": KEY},
    ),
    Row(
        co.moco,
        whole_model(ref_weights.moco()),
        (
            laws.order_is_irrelevant,
            laws.stays_in_the_hull,
            *ITSELF,
            CANCEL,
            laws.weights_say_presence_only,
        ),
        options={"num_rows": ...},
        thresholds=("learning_rate", "regularization"),
        rtol=1e-5,
    ),
    Row(
        co.ema_weights,
        whole_model(ref.mgda),
        (*ANY_ORDER, *ITSELF, CANCEL, laws.opposes_no_row, laws.stays_in_the_hull),
        options={"rule": co.mgda(), "num_rows": ...},
        empty=("zero row", *CANCELLING),
        thresholds=("decay",),
        rtol=1e-4,
    ),
]
