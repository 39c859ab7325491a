"""Robust weightings, and rules after a mixing.

Six rows allow f = 1 where n > 2f is asked for, and f = 0 of Krum and Bulyan with the
rows that are absent; more of them stand in the rules' own tests, and of Bulyan here.
"""

import jax.numpy as jnp

import consensus_optax as co
from tests import _laws as laws
from tests import _reference_robust as robust
from tests import _reference_spectral as spectral
from tests._reference import mean, whole_model
from tests.zoo._row import Row

OF_POSITION = (
    laws.order_is_irrelevant,
    laws.scales_with_the_rows,
    laws.shifts_with_the_rows,
    laws.stays_in_the_hull,
    laws.equal_rows_give_that_row,
    laws.one_row_gives_that_row,
)


def krum_of_mixed(num_byzantine):
    return co.after(co.nearest_neighbor_mixing(num_byzantine), co.krum(num_byzantine))


def bulyan_of_more(num_byzantine):
    """The rows, and each halfway to their mean: enough of them for it not to be one."""

    def more(_, roster):
        eye = jnp.eye(len(roster.weights), dtype=roster.weights.dtype)
        halfway = (eye + roster.shares[None]) / 2
        return jnp.concatenate([eye, halfway]), jnp.tile(roster.weights, 2)

    return co.after(co.Mixing(more, "nothing"), co.bulyan(num_byzantine))


def mean_of_clipped(num_byzantine):
    return co.after(co.adaptive_clipping(num_byzantine), co.mean())


ROBUST = [
    Row(
        co.krum,
        whole_model(robust.krum(0)),
        OF_POSITION,
        options={"num_byzantine": 0},
        least_rows=3,
    ),
    Row(
        co.krum,
        whole_model(robust.krum(0, 3)),
        OF_POSITION,
        options={"num_byzantine": 0, "num_selected": 3},
        least_rows=3,
    ),
    Row(
        co.bulyan,
        whole_model(robust.bulyan(0)),
        OF_POSITION,
        options={"num_byzantine": 0},
        least_rows=3,
        empty=("zero",),
    ),
    Row(
        bulyan_of_more,
        whole_model(robust.bulyan_of_more(1)),
        (  # of two rows that are left the first is taken, and columns leave the hull
            laws.scales_with_the_rows,
            laws.shifts_with_the_rows,
            laws.equal_rows_give_that_row,
            laws.one_row_gives_that_row,
        ),
        options={"num_byzantine": 1},
        least_rows=4,
    ),
    Row(
        co.minimum_diameter,
        whole_model(robust.minimum_diameter(1)),
        OF_POSITION,
        options={"num_byzantine": 1},
        least_rows=3,
    ),
    Row(
        co.smea,
        whole_model(spectral.smea(1)),
        OF_POSITION,
        options={"num_byzantine": 1},
        least_rows=3,
    ),
    Row(
        co.caf,
        whole_model(spectral.caf(1)),
        OF_POSITION,
        options={"num_byzantine": 1},
        least_rows=3,
    ),
    Row(
        co.comparative_elimination,
        whole_model(robust.comparative_elimination(1)),
        tuple(law for law in OF_POSITION if law is not laws.shifts_with_the_rows),
        options={"num_byzantine": 1},
        least_rows=3,
    ),
    Row(
        co.divide_and_conquer,
        whole_model(spectral.divide_and_conquer(1)),
        OF_POSITION,
        options={"num_byzantine": 1},
        least_rows=3,
    ),
    Row(
        co.geometric_median,
        whole_model(robust.geometric_median),
        (*OF_POSITION, laws.weights_are_counts),
        thresholds=("nu",),
        # Half of its rows are one: the iterate creeps up to that, distances there are
        # differences of float32, and 64 iterations end up to 4e-4 apart.
        loose={"repeated": 1e-3},
    ),
    Row(
        co.centered_clipping,
        whole_model(robust.centered_clipping(2.0, 3)),
        (laws.order_is_irrelevant, laws.weights_are_counts),
        options={"max_distance": 2.0, "iterations": 3},
        thresholds=("max_distance",),
        rtol=1e-5,  # thrice clipped by a float32 distance
    ),
    Row(
        krum_of_mixed,
        whole_model(robust.nearest_neighbor_mixing(0, robust.krum(0))),
        OF_POSITION,
        options={"num_byzantine": 0},
        least_rows=3,
    ),
    Row(
        mean_of_clipped,
        whole_model(robust.adaptive_clipping(1, mean)),
        (
            laws.order_is_irrelevant,
            laws.scales_with_the_rows,
            laws.equal_rows_give_that_row,
            laws.one_row_gives_that_row,
        ),
        options={"num_byzantine": 1},
        least_rows=3,
    ),
]
