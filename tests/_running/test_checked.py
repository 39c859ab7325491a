"""Rules of one's own are checked where they are made, and what they are made of."""

import jax
import jax.numpy as jnp
import pytest

import consensus_optax as co


def weigh(products, roster, state):
    return roster.shares, state


def reduce(stack, weights):
    return stack.max(0)


def mix(products, roster):
    return jnp.eye(2), roster.weights


TOTAL = co.Statistic(lambda row, weight: weight * row, jnp.add)
RESOLVE = lambda merged, roster: merged[0]
KINDS = "`rule` must be a Fold, Columns, Weighting, Among or After; got "
WORDS = "'gramian', 'centered', 'affine', 'signs', 'norms', 'norm_bounds', 'toward', "
WORDS += "'nothing'"
WRONG = {
    "a mixing": (
        lambda: co.bucketing(2, jax.random.key(0)),
        KINDS + "a Mixing: use co.after(mixing, reducer)",
    ),
    "a reducer": (co.mean, KINDS + "a Reducer: it has a rule already"),
    "a class": (lambda: co.Columns, KINDS + "the class Columns: give an instance"),
    "a function": (
        lambda: reduce,
        KINDS + "a function: say what kind of rule it is, such as co.Columns(function)",
    ),
    "a number": (lambda: 1.5, KINDS + "an object of type float"),
    "a word nearly right": (
        lambda: co.Weighting(weigh, reads="norm"),
        f"`reads` must be one of {WORDS}; got 'norm'. Did you mean 'norms'?",
    ),
    "a word": (
        lambda: co.Weighting(weigh, reads="everything else"),
        f"`reads` must be one of {WORDS}; got 'everything else'",
    ),
    "no word": (
        lambda: co.Weighting(weigh, reads=jnp.ones(2)),
        f"`reads` must be one of {WORDS}; got Array([1., 1.], dtype=float32)",
    ),
    "per leaf": (
        lambda: co.Weighting(weigh, per_leaf="leaf"),
        "`per_leaf` must be True or False, known when traced; got 'leaf'",
    ),
    "remembers": (
        lambda: co.Weighting(weigh, remembers=1),
        "`remembers` must be True or False, known when traced; got 1",
    ),
    "weigh": (
        lambda: co.Weighting(reduce),
        "`weigh` must be a function of (products, roster, state); got one of "
        "(stack, weights)",
    ),
    "init": (
        lambda: co.Weighting(weigh, init=()),
        "`init` must be a function of (params, dtype); got ()",
    ),
    "init's arguments": (
        lambda: co.Weighting(weigh, init=lambda params: ()),
        "`init` must be a function of (params, dtype); got one of (params)",
    ),
    "reduce": (
        lambda: co.Columns(lambda stack: stack.max(0)),
        "`reduce` must be a function of (stack, weights); got one of (stack)",
    ),
    "no statistics": (
        lambda: co.Fold((), RESOLVE),
        "`statistics` must be a sequence of Statistic, one at least; got ()",
    ),
    "one statistic": (
        lambda: co.Fold(TOTAL, RESOLVE),
        "`statistics` must be a sequence of Statistic, one at least; got one: put it "
        "in a tuple",
    ),
    "other statistics": (
        lambda: co.Fold([TOTAL, 2], RESOLVE),
        "`statistics` must be a sequence of Statistic, one at least; got [",
    ),
    "observe": (
        lambda: co.Fold([co.Statistic(jnp.shape, jnp.add)], RESOLVE),
        "`observe` must be a function of (row, weight); got one of ",
    ),
    "merge": (
        lambda: co.Fold([co.Statistic(lambda g, w: g, None)], RESOLVE),
        "`merge` must be a function of (one, other); got None",
    ),
    "resolve": (
        lambda: co.Fold([TOTAL], lambda merged: merged),
        "`resolve` must be a function of (merged, roster); got one of (merged)",
    ),
    "matters": (
        lambda: co.Fold([TOTAL], RESOLVE, "all"),
        "`matters` must be a function of (roster); got 'all'",
    ),
    "a mixing's words": (
        lambda: co.after(co.Mixing(mix, "norm"), co.mean()).rule,
        f"`reads` must be one of {WORDS}; got 'norm'. Did you mean 'norms'?",
    ),
    "a mixing's function": (
        lambda: co.after(co.Mixing(jnp.eye(2)), co.mean()).rule,
        "`mix` must be a function of (products, roster); got Array",
    ),
    "no mixing": (
        lambda: co.after(co.mean(), co.mean()).rule,
        "`mixing` must be a linear map of rows (co.Mixing); got a Reducer",
    ),
    "a selector": (
        lambda: co.among(co.median(), co.mean()).rule,
        "`selector` must be a weighting that gives every row one weight",
    ),
    "a selector by leaf": (
        lambda: co.among(co.per_leaf(co.krum(0)), co.mean()).rule,
        "`selector` must be a weighting that gives every row one weight from this "
        "step's rows alone; got one with per_leaf=True, remembers=False",
    ),
    "a selector that remembers": (
        lambda: co.among(co.previous_update_filter(), co.mean()).rule,
        "`selector` must be a weighting that gives every row one weight from this "
        "step's rows alone; got one with per_leaf=False, remembers=True",
    ),
    "nested": (
        lambda: co.mean().rule._replace(reads="al"),
        f"`reads` must be one of {WORDS}; got 'al'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case):
    make, message = WRONG[case]
    with pytest.raises(ValueError) as error:  # noqa: PT011
        co.reducer(make())
    assert str(error.value).startswith(message)


def test_what_a_composed_rule_is_made_of_is_checked_as_well():
    wrong = co.Weighting(weigh, reads="norm")
    among = co.among(co.mean(), co.mean()).rule
    after = co.after(co.Mixing(mix), co.mean()).rule
    for rule in (
        among._replace(selector=wrong),
        among._replace(rule=wrong),
        after._replace(rule=wrong),
        after._replace(rule=among._replace(rule=wrong)),
    ):
        with pytest.raises(ValueError, match="`reads` must be one of"):
            co.reducer(rule)


def test_words_may_be_members_of_their_enumeration():
    from consensus_optax._rules.kinds import Reads

    for word in Reads:
        assert co.reducer(co.Weighting(weigh, reads=word)).rule.reads is word


def test_a_function_that_does_not_tell_its_arguments_passes():
    co.reducer(co.Fold([co.Statistic(jnp.multiply, max)], RESOLVE))


@pytest.mark.parametrize("state", [(), ((), ()), ({},)])
def test_a_missing_state_is_named(state):
    """Whether it is left out or another's; not by an inner function's name."""
    rule, w, x = co.mean(), jnp.ones(2), jnp.ones((3, 2))
    step = co.value_and_reduced_grad(lambda w, x: jnp.mean(x @ w), rule)
    named = {"state": state[0]} if state else {}
    calls = {
        "update(rows, state, params)": lambda: rule.update(x, *state),
        "reduced(params, batch, state=state)": lambda: step(w, x, **named),
    }
    for call, run in calls.items():
        with pytest.raises(ValueError, match="`state` must be what") as error:
            run()
        assert call in str(error.value)
        assert "locals" not in str(error.value)


@pytest.mark.parametrize("degree", [0.5, "one", 1])
def test_a_degree_is_one_of_few(degree):
    with pytest.raises(ValueError, match="`degree` must be 0 or -1 or -2, or None"):
        co.reducer(co.Weighting(lambda products, roster, state: None, degree=degree))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"reads": "norms", "apart": "shares"}, "Did you mean 'share'"),
        ({"apart": "share"}, "None where a rule reads more than lengths.*gramian"),
        ({"reads": "norms", "remembers": True, "apart": "weight"}, "remembers=True"),
    ],
)
def test_rows_decide_apart_that_read_no_others(given, words):
    with pytest.raises(ValueError, match=f"`apart` must be .*{words}"):
        co.reducer(co.Weighting(lambda products, roster, state: None, **given))
