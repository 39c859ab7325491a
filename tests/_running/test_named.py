"""Reducers and mixings print as the calls that made them."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from tests.zoo import FACTORIES

KEY = jax.random.key(0)
PRINTED = {
    "sign_consensus()": lambda: co.sign_consensus(1.0),
    "sign_consensus(quorum=0.8)": lambda: co.sign_consensus(0.8),
    "krum(2, num_selected=3)": lambda: co.krum(2, 3),
    "krum(2)": lambda: co.krum(num_byzantine=2),
    "cosine_filter(temperature=0.1)": lambda: co.cosine_filter(temperature=0.1),
    "cosine_filter(max_distance=...)": lambda: co.cosine_filter(jnp.float32(0.5)),
    "cosine_filter(max_distance=schedule)": lambda: co.cosine_filter(
        optax.linear_schedule(1.0, 0.9, 10)
    ),
    "graddrop(0.5, ...)": lambda: co.graddrop(0.5, KEY),
    "upgrad(preference=[1.0, 2.0])": lambda: co.upgrad([1.0, 2.0]),
    "upgrad(preference=...)": lambda: co.upgrad(np.ones(2)),
    "ema_weights(mgda(), 4)": lambda: co.ema_weights(co.mgda(), num_rows=4),
    "among(cosine_filter(max_distance=0.5), sign_consensus())": lambda: co.among(
        co.cosine_filter(0.5), co.sign_consensus()
    ),
    "bucketing(2, ...)": lambda: co.bucketing(2, KEY),
    "after(bucketing(2, ...), median())": lambda: co.after(
        co.bucketing(2, KEY), co.median()
    ),
    "after(Mixing(...), median())": lambda: co.after(
        co.Mixing(lambda products, roster: (jnp.eye(2), roster.weights)), co.median()
    ),
    "sharded(median(), 'data')": lambda: co.sharded(co.median(), "data"),
    "sharded(sign_vote(), 'data', wire_dtype=int8)": lambda: co.sharded(
        co.sign_vote(), "data", wire_dtype=jnp.int8
    ),
    "reducer(Columns(...))": lambda: co.reducer(co.Columns(lambda stack, w: stack[0])),
    "reducer(Weighting(...))": lambda: co.reducer(co.mean().rule),
}


@pytest.mark.parametrize("text", PRINTED)
def test_prints_as_the_call(text):
    assert repr(PRINTED[text]()) == text


def test_a_threshold_that_is_traced_does_not_print():
    texts = []

    @jax.jit
    def make(quorum):
        texts.append(repr(co.sign_consensus(quorum)))
        return quorum

    make(0.8)
    assert texts == ["sign_consensus(quorum=...)"]


@pytest.mark.parametrize("row", FACTORIES, ids=str)
def test_every_public_reducer_prints_its_own_name(row):
    name = row.factory.__name__
    if name in co.__all__:  # else a rule of the tests' own
        start = f"per_leaf({name}(" if row.per_leaf else f"{name}("
        assert repr(row.make()).startswith(start)


def test_signatures_and_docstrings_stay():
    assert [*inspect.signature(co.sign_consensus).parameters] == [
        *["quorum", "magnitude", "rescale"]
    ]
    assert inspect.getdoc(co.sign_consensus).startswith("Consensus training")
    assert co.sign_consensus.__module__.endswith("_sign_consensus")
    with pytest.raises(TypeError, match=r"^sign_consensus\(\) got an unexpected"):
        co.sign_consensus(quota=1)


def test_a_pair_of_two_functions_like_any_of_optax():
    rule = co.sign_consensus(0.8)
    init, update = rule
    assert (init, update) == (rule.init, rule.update)
