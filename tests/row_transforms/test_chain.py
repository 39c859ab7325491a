"""A chain is a rule: that of ``optax.chain``, wherever its rows come from."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import consensus_optax as co
from tests._stacks import factored, matrix
from tests.engines.test_sources import NO_SQUARES, SOURCES, in_steps, stacks, stepper

key = jax.random.key(3)
STEPS = {
    "clip": lambda: (co.clip_examples(2.0),),
    "normalize": lambda: (co.normalize_examples(),),
    # of rows of 1e25 some are infinite then
    "scale": lambda: (co.scale_examples(1e14),),
    "scale, clip": lambda: (co.scale_examples(0.3), co.clip_examples(1.5)),
    "clip, mix": lambda: (co.clip_examples(2.0), co.bucketing(2, key)),
    "normalize, clip": lambda: (co.normalize_examples(), co.clip_examples(0.5)),
    "probe, clip": lambda: (co.probe(), co.clip_examples(2.0)),
    "clip, norms": lambda: (co.clip_examples(2.0), co.probe(reads="norms")),
}
REDUCERS = {
    "fold": co.sign_consensus,
    "variance": lambda: co.signal_to_noise(),
    "mean": co.mean,
    "gramian": lambda: co.cosine_filter(0.9),
    "distances": lambda: co.krum(1),
    "signs": lambda: co.sign_filter(0.55),
    "columns": co.median,
    "among": lambda: co.among(co.cosine_filter(0.9), co.sign_consensus()),
    "after": lambda: co.after(co.nearest_neighbor_mixing(2), co.mean()),
    "per leaf": lambda: co.per_leaf(co.cosine_filter(0.9)),
    "remembers": lambda: co.centered_clipping(1.0),
    "bounds": lambda: co.clipped_sum(1.0, divisor=4),
}
QUICK = [
    ("clip", "gramian", "microbatches of 5"),
    ("clip", "fold", "backward pass"),
    ("scale", "mean", "mesh"),
    ("clip, norms", "distances", "microbatches of 2 on a mesh"),
    ("probe, clip", "mean", "microbatches of 1"),
]


class Seen(NamedTuple):
    """What the law reads of a state."""

    consensus_ready: jax.Array
    num_present: jax.Array
    num_nonfinite: jax.Array
    chain: Any


class InOptax:
    """optax.chain of the same parts, with the face of a reducer."""

    def __init__(self, *parts):
        *first, last = parts
        if first and isinstance(first[-1], co.Mixing):
            first, last = first[:-1], co.after(first[-1], last)
        self.chain = optax.chain(*first, last)

    def init(self, params):
        return self._seen(self.chain.init(params))

    def update(self, rows, state, params, **extra):
        update, state = self.chain.update(rows, state.chain, params, **extra)
        return update, self._seen(state)

    @staticmethod
    def _seen(state):
        last = state[-1]
        facts = last.consensus_ready, last.num_present, last.num_nonfinite
        return Seen(*facts, state)


@functools.cache
def outcomes(steps, reducer, way):
    """(updates (S, STEPS, P), facts) of all stacks; ways are sources, None, optax."""
    names, rows, weights = stacks()
    parts = *STEPS[steps](), REDUCERS[reducer]()
    made = InOptax(*parts) if way == "optax" else co.chain(*parts)
    source = way if way in SOURCES else None
    with np.errstate(over="ignore"):
        update, seen = in_steps(made, source, rows, weights, stepper)
    return names, matrix(update, batch_ndim=2), [np.asarray(x) for x in seen]


def check(steps, reducer, way, other, rtol=1e-5):
    names, wanted, facts = outcomes(steps, reducer, way)
    _, got, seen = outcomes(steps, reducer, other)
    gap, size = np.abs(got - wanted).max(-1), np.abs(wanted).max(-1)
    known = np.array([not (reducer == "variance" and n in NO_SQUARES) for n in names])
    wrong = {
        name: f"off by {gap[s].max():.1e} of {size[s].max():.1e}"
        for s, name in enumerate(names)
        if not (gap[s] <= rtol * size[s]).all() and known[s]
    }
    assert not wrong
    for one, another in zip(facts, seen, strict=True):
        np.testing.assert_array_equal(one[known], another[known])


def cases():
    """One now; in CI every reducer, every step and every source, in turn."""
    names, sources = list(STEPS), list(SOURCES)
    for case in QUICK:
        marks = () if case == QUICK[0] else pytest.mark.whole_zoo
        yield pytest.param(*case, marks=marks)
    for place, reducer in enumerate(REDUCERS):
        steps = names[place % len(names)]
        source = sources[(place + place // len(sources)) % len(sources)]
        yield pytest.param(steps, reducer, source, marks=pytest.mark.whole_zoo)


@pytest.mark.parametrize(("steps", "reducer", "source"), [*cases()])
def test_the_answer_does_not_depend_on_the_source(steps, reducer, source):
    check(steps, reducer, None, source)
    check(steps, reducer, None, "optax")


@pytest.mark.standard_promotion  # of optax's own clip
@pytest.mark.parametrize(
    "steps", ["clip", pytest.param("normalize, clip", marks=pytest.mark.whole_zoo)]
)
def test_factored_rows_give_what_optax_chain_gives(steps):
    """The same operations on the same numbers, but for norms of small leaves."""
    rows, params, _ = factored()
    chain, parts = co.chain(*STEPS[steps](), co.mean()), (*STEPS[steps](), co.mean())
    other = optax.chain(*parts)
    update, _ = jax.jit(chain.update)(rows, chain.init(params), params)
    wanted, _ = jax.jit(other.update)(rows, other.init(params), params)
    for one, another in zip(*map(jax.tree.leaves, (update, wanted)), strict=True):
        np.testing.assert_allclose(  # float32 sums of 6 rows, bfloat16 entries
            one.astype(float), another.astype(float), rtol=2**-8, atol=1e-6
        )


def test_numbers_of_a_chain_are_those_of_its_parts():
    chain = co.chain(co.scale_examples(0.5), co.clip_examples(1.0), co.mean())
    rows, params = jnp.array([[4.0, 0.0], [0.0, 1.0], [jnp.nan, 0.0]]), jnp.zeros(2)
    update, state = chain.update(rows, chain.init(params), params)
    assert update.tolist() == [0.5, 0.25]
    assert optax.tree.get_all_with_path(state, "scaled_share")[1][1] == 0.5
    assert (int(state.num_present), int(state.num_nonfinite)) == (2, 1)
    wanted = "chain(scale_examples(0.5), clip_examples(1.0), mean())"
    assert repr(chain) == wanted


def test_narrow_rows_are_rounded_between_parts_by_optax_alone():
    rows = np.random.default_rng(0).normal(size=(3, 64)).astype(jnp.bfloat16)
    params, batch = jnp.zeros(64, jnp.bfloat16), jnp.asarray(rows)
    parts = co.scale_examples(1 / 3), co.scale_examples(3.0), co.mean()
    chain, other = co.chain(*parts), optax.chain(*parts)
    loss = lambda w, x: jnp.sum(w * x.mean(0))
    found = [chain.update(batch, chain.init(params), params)[0]]
    for ways in ({"hold_rows": False}, {"microbatch_size": 2}):
        reduced = co.value_and_reduced_grad(loss, chain, **ways)
        found.append(reduced(params, batch, state=chain.init(params))[1])
    rounded, _ = other.update(batch, other.init(params), params)
    wide = rows.astype(np.float64)
    sums = 8 * np.finfo(np.float32).eps * np.abs(wide).mean(0)  # 3 terms, 2 factors
    # One rounding of the update, to the 8 digits of bfloat16.
    once = 2.0**-8 * np.abs(wide.mean(0)) + sums
    gaps = [np.abs(np.asarray(x, np.float64) - wide.mean(0)) for x in (*found, rounded)]
    for gap in gaps[:-1]:
        assert (gap <= once).all()
    assert (gaps[-1] > once).any()


def test_a_norm_that_overflows_is_excluded_and_counted():
    chain, params = co.chain(co.clip_examples(1.0), co.mean()), jnp.zeros(2)
    rows = jnp.array([[3e38, 3e38], [3.0, 4.0]])
    update, state = chain.update(rows, chain.init(params), params)
    np.testing.assert_allclose(update, [0.6, 0.8], rtol=1e-6)  # one division
    assert (int(state.num_present), int(state.num_nonfinite)) == (1, 1)


def test_schedules_see_the_number_of_the_step():
    limit = lambda step: jnp.where(step == 0, 5.0, 0.5)
    chain, params = co.chain(co.clip_examples(limit), co.mean()), jnp.zeros(2)
    rows, state = jnp.array([[3.0, 4.0]]), chain.init(params)
    first, state = chain.update(rows, state, params)
    second, _ = chain.update(rows, state, params)
    np.testing.assert_allclose([first, second], [[3, 4], [0.3, 0.4]], rtol=1e-6)


def loss(w, x):
    return jnp.mean((x @ w) ** 2)


def test_momentum_of_rows_needs_rows_in_memory():
    chain = co.chain(co.row_momentum(0.5, 3), co.clip_examples(1.0), co.mean())
    x, w = jnp.array([[1.0, 0], [2, 1], [1, 1]]), jnp.ones(2)
    reduced = co.value_and_reduced_grad(loss, chain)
    _, update, state = reduced(w, x, state=chain.init(w))
    _, again, _ = reduced(w, x, state=state)
    other = optax.chain(co.row_momentum(0.5, 3), co.clip_examples(1.0), co.mean())
    rows, kept = co.per_example_grad(loss)(w, x), other.init(w)
    for got in (update, again):
        wanted, kept = other.update(rows, kept, w)
        np.testing.assert_allclose(got, wanted, rtol=1e-6)  # one division
    found = "`row_momentum` keeps a memory of every row, so it takes rows that are in"
    for option in ({"microbatch_size": 2}, {"hold_rows": False}):
        reduced = co.value_and_reduced_grad(loss, chain, **option)
        with pytest.raises(ValueError, match=found):
            reduced(w, x, state=chain.init(w))
    mesh = jax.make_mesh((1,), ("data",))
    rule = co.sharded(chain, "data", mesh=mesh)
    with pytest.raises(ValueError, match=found):
        rule.update(rows, rule.init(w), w)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "`parts` must end with a reducer; got none"),
        ((co.clip_examples(1.0),), r"must be a reducer .*; got clip_examples\(1.0\)"),
        ((co.mean(), optax.sgd(1.0)), r"got a \w+\. What follows a reducer stays"),
        ((optax.clip(1.0), co.mean()), "Part 1 of `parts` .* `co.clip_examples`"),
        ((co.mean(), co.mean()), r"got mean\(\)\. A reducer gives no rows"),
        ((3, co.mean()), "got a int"),
    ],
)
def test_says_which_part_is_wrong(parts, message):
    with pytest.raises(ValueError, match=message):
        co.chain(*parts)


def test_an_optax_chain_is_told_of_this_one():
    chain = optax.chain(co.clip_examples(1.0), co.mean())
    with pytest.raises(ValueError, match=r"`co\.chain` of row transformations"):
        co.value_and_reduced_grad(loss, chain)


def test_noise_is_added_where_every_row_stands_for_itself():
    private = co.private_sum(1.0, divisor=2, noise_multiplier=1.0, key=key)
    assert co.chain(co.clip_examples(3.0), private).sensitivity == 0.5
    clipped = co.clipped_sum(1.0, divisor=2)
    mixing = co.bucketing(2, key)
    assert co.chain(mixing, clipped).sensitivity is None
    for parts in ((mixing, private), (mixing, co.clip_examples(3.0), private)):
        with pytest.raises(ValueError, match="must add no noise"):
            co.chain(*parts)
