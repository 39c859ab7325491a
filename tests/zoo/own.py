"""Rules of one's own, for kinds and compositions that no single method stands for."""

import jax.numpy as jnp

import consensus_optax as co
from tests import _laws as laws
from tests import _reference as reference
from tests._reference import by_leaf, whole_model
from tests.zoo._row import Row


def largest_entries():
    """Columns: the largest entry of the present rows."""

    def reduce(stack, weights):
        present = (weights > 0).reshape(-1, *[1] * (stack.ndim - 1))
        return jnp.where(present, stack, -jnp.inf).max(0)

    return co.reducer(co.Columns(reduce))


def typical():
    """A weighting that reads centred products: rows far from the mean weigh less."""

    def weigh(products, roster, state):
        distances = products.diagonal()  # squared
        total = distances.sum()
        votes = roster.weights / (1 + distances / jnp.where(total > 0, total, 1))
        return votes / votes.sum(), state

    return co.reducer(co.Weighting(weigh, reads="centered", degree=0))


def heavy_ball():
    """A weighting that remembers: the mean, and 0.9 of the previous update."""

    def weigh(products, roster, state):
        return jnp.append(roster.shares, jnp.full((), 0.9, products.dtype)), state

    return co.reducer(co.Weighting(weigh, remembers=True, degree=0))


def consensus_among_accepted():
    return co.among(co.cosine_filter(0.6), co.sign_consensus())


def _halfway_to_mean(_, roster):
    eye = jnp.eye(len(roster.weights), dtype=roster.weights.dtype)
    return (eye + roster.shares[None]) / 2, roster.weights


def consensus_after_mixing():
    return co.after(co.Mixing(_halfway_to_mean, "nothing"), co.sign_consensus())


def filter_after_mixing():
    mixing = co.Mixing(_halfway_to_mean, "nothing")
    return co.after(mixing, co.cosine_filter(0.6, average="mean"))


OF_ANY_SCALE = (laws.scales_with_the_rows, laws.equal_rows_give_that_row)

OWN = [
    Row(
        largest_entries,
        by_leaf(reference.largest),
        (
            *OF_ANY_SCALE,
            laws.order_is_irrelevant,
            laws.one_row_gives_that_row,
            laws.weights_say_presence_only,
            laws.weights_are_counts,
        ),
        empty=("zero",),
    ),
    Row(
        typical,
        whole_model(reference.typical),
        (
            *OF_ANY_SCALE,
            laws.order_is_irrelevant,
            laws.stays_in_the_hull,
            laws.one_row_gives_that_row,
        ),
    ),
    Row(
        heavy_ball,
        whole_model(reference.mean),  # in the first step
        (*OF_ANY_SCALE, laws.order_is_irrelevant, laws.one_row_gives_that_row),
    ),
    Row(
        consensus_among_accepted,
        whole_model(
            reference.among(reference.gaf_accepts(0.6), reference.consensus_training)
        ),
        (*OF_ANY_SCALE, laws.weights_say_presence_only),
        empty=("zero", "one row", "outlier first"),
    ),
    Row(
        consensus_after_mixing,
        whole_model(reference.halfway_to_mean(reference.consensus_training)),
        (*OF_ANY_SCALE, laws.order_is_irrelevant, laws.one_row_gives_that_row),
        empty=("zero",),
    ),
    Row(
        filter_after_mixing,
        whole_model(reference.halfway_to_mean(reference.gaf(0.6, average="mean"))),
        (*OF_ANY_SCALE, laws.stays_in_the_hull),
        empty=("zero", "one row"),
    ),
]
