"""One grammar of errors for static arguments: what it must be, and what it is."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from consensus_optax import _check

KEY = "must be one random key, as `jax.random.key(0)` makes it; got"
GRAMMAR = [
    (lambda: co.graddrop(0.1, 3), f"`key` {KEY} 3"),
    (lambda: co.bucketing(2, None), f"`key` {KEY} None"),
    (lambda: co.pcgrad(jnp.ones(2)), f"`key` {KEY} Array"),
    (lambda: co.random_weights("seed"), f"`key` {KEY} 'seed'"),
    (lambda: co.grad_vac(0.5, 3), f"`key` {KEY} 0.5"),
    (lambda: co.compressors.natural(1), f"`key` {KEY} 1"),
    (lambda: co.magma(optax.sgd(1.0), 2), f"`key` {KEY} 2"),
    (
        lambda: co.magma(3, jax.random.key(0)),
        "transformation, such as `optax.adam(1e-3)`; got 3",
    ),
    (lambda: co.cautious(co.mean), "`optimizer` must be an optax transformation"),
    (lambda: co.partition({"a": 1}, "a"), "`transforms['a']` must be an optax"),
    (lambda: co.partition(optax.sgd(1.0), "a"), "`transforms` must be a dict of"),
    (
        lambda: co.cautious(optax.sgd(1.0), rescale="no"),
        "`rescale` must be True or False, known when traced; got 'no'",
    ),
    (
        lambda: co.proximal(lambda step: 1.0),
        "`mu` must be a number in [0, inf]; got <function",
    ),
    (
        lambda: co.scalarizers.dwa(2, temperature=lambda step: 1.0),
        "`temperature` must be a number in (0, inf]; got <function",
    ),
    (lambda: co.sign_consensus(0.3), "`quorum` must be in (0.5, 1]; got 0.3"),
    (lambda: co.sign_consensus(0.5), "`quorum` must be in (0.5, 1]; got 0.5"),
    (
        lambda: co.sign_consensus(jnp.float32(2)),
        "`quorum` must be in (0.5, 1]; got 2.0",
    ),
    (
        lambda: co.sign_consensus(magnitude="median"),
        "`magnitude` must be one of 'min', 'mean', 'agreeing_mean', 'geometric'; "
        "got 'median'",
    ),
    (lambda: co.sign_consensus(rescale=1), "`rescale` must be True or False"),
    (lambda: co.cosine_filter(-0.1), "`max_distance` must be in [0, 2]; got -0.1"),
    (lambda: co.cosine_filter(np.nan), "`max_distance` must be in [0, 2]; got nan"),
    (
        lambda: co.cosine_filter("0.9"),
        "`max_distance` must be a number in [0, 2] or a schedule; got '0.9'",
    ),
    (
        lambda: co.cosine_filter(np.ones(2)),
        "`max_distance` must be a number in [0, 2] or a schedule; got array([1., 1.])",
    ),
    (lambda: co.cosine_filter(True), "`max_distance` must be a number in [0, 2]"),
    (lambda: co.cosine_filter(average="median"), "`average` must be one of 'halving'"),
    (lambda: co.per_leaf(co.median()), "`weighting` must be made of a Weighting"),
    (
        lambda: co.cosine_filter(temperature=0.0),
        "`temperature` must be in (0, inf]; got 0.0",
    ),
    (
        lambda: co.subspace_weighting(1.0, 4),
        "`momentum` must be in [0, 1); got 1.0",
    ),
    (lambda: co.subspace_weighting(0.5, 0), "`num_rows` must be at least 1; got 0"),
    (lambda: co.subspace_weighting(0.5, 4.0), "`num_rows` must be an integer; got 4.0"),
    (lambda: co.subspace_weighting(length="norm"), "`length` must be one of 'unit'"),
    (lambda: co.clip_examples(-1), "`max_norm` must be in [0, inf]; got -1.0"),
    (lambda: co.ema_agreement(decay=1.0), "`decay` must be in [0, 1); got 1.0"),
    (
        lambda: co.ema_agreement(max_distance=3.0),
        "`max_distance` must be in [0, 2]; got 3.0",
    ),
    (lambda: co.ema_agreement(scope="all"), "`scope` must be one of 'leaf', 'model'"),
    (
        lambda: co.per_example_grad(len, group_size=0),
        "`group_size` must be at least 1; got 0",
    ),
    (
        lambda: co.per_example_grad(len, keep_batch_dim=False, group_size=2),
        "`keep_batch_dim` must be True when `group_size` is above 1; got False",
    ),
]


@pytest.mark.parametrize(("make", "message"), GRAMMAR, ids=[m for _, m in GRAMMAR])
def test_a_bad_argument_is_an_error_in_the_factory(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    "value",
    [
        1,
        0.5,
        np.float32(0.5),
        np.array(0.5),
        jnp.float32(0.5),
        optax.constant_schedule(2),
    ],
    ids=["int", "float", "NumPy scalar", "NumPy array", "array", "schedule"],
)
def test_a_threshold_is_a_number_an_array_or_a_schedule(value):
    co.cosine_filter(value)


def test_traced_thresholds_are_not_checked():
    """Their values are not known: nothing is raised, nothing is guessed."""

    @jax.jit
    def accepted(threshold):
        rule, params = co.cosine_filter(threshold), jnp.zeros(2)
        rows = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        return rule.update(rows, rule.init(params), params)[1].rule_state.accepted

    assert [accepted(t) for t in (-1.0, 0.5, 1.0, 5.0)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("word", "meant"),
    [("weight", "weights"), ("Value_s", "values"), ("wieghts", "weights")],
)
def test_words_like_ours_are_errors(word, meant):
    with pytest.raises(ValueError, match=f"`{word}` is no .* mean `{meant}`"):
        _check.known_words([word], ("weights", "values"))


def test_words_of_others_pass():
    ours = ("weights", "values", "mine")
    _check.known_words(["value", "grad", "value_fn", "loss", "mine", "lr", "key"], ours)
