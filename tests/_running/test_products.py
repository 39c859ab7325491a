"""What a rule reads of rows is what it says, from every source, in every step.

A rule that keeps what it has read: two steps, so that its previous update is among it.
Rows about zero and rows far from it, one of them absent, which reads as zero.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import consensus_optax as co
from tests._stacks import SIZES, P, matrix
from tests.engines.test_sources import ROWS, SOURCES, in_steps

pytestmark = pytest.mark.slow

STEPS, ABSENT, SHARE = 2, 3, 0.5
LEAVES = np.cumsum(SIZES)[:-1]
# reads, by leaf, with the previous update
READS = [
    ("norms", False, False),
    ("norms", True, False),
    ("gramian", False, False),
    ("gramian", True, True),
    ("signs", False, True),
    ("centered", False, True),
    ("affine", False, False),
    ("affine", True, True),
]


def keeper(reads, per_leaf, remembers):
    """The mean, with a share of the previous update; its state is what it has read."""
    size = ROWS + remembers

    def init(params, dtype):
        del params
        return jnp.zeros((size,) if reads == "norms" else (size, size), dtype)

    def weigh(products, roster, state):
        del state
        share = [jnp.full((), SHARE, products.dtype)] * remembers
        return jnp.append(roster.shares, jnp.array(share)), products

    rule = co.reducer(co.Weighting(weigh, init, reads=reads, remembers=remembers))
    return co.per_leaf(rule) if per_leaf else rule


def stepper(reducer, update_of):
    """What the rule has read in each step."""

    def steps(rows, weights, start):
        def step(state, now):
            state = update_of(reducer, now, weights, state)[1]
            return state, state.rule_state

        return jax.lax.scan(step, start, rows)[1]

    return steps


def stacks():
    """About zero, and far from it: (S, STEPS, B, P), and weights (S, B)."""
    random = np.random.default_rng(11)
    rows = random.normal(size=(2, STEPS, ROWS, P)) + random.normal(size=P)
    rows[1] += 1e3 * np.sign(random.normal(size=P))
    rows[:, :, ABSENT] = np.nan
    weights = random.uniform(0.5, 2, (2, ROWS))
    weights[:, ABSENT] = 0
    return rows.astype(np.float32), weights.astype(np.float32)


def expected(rows, weights, reads, previous):
    """Inner products (..., B or B + 1) in float64, of one stack in one step.

    Those for distances are compared as distances, whatever point they are about.
    """
    shares = weights.astype(float) / weights.sum(dtype=float)
    every = np.concatenate([rows, previous])
    if reads == "norms":
        return (every**2).sum(1)
    if reads == "signs":
        every = np.sign(every)
    if reads == "centered":
        every = every - shares @ rows
    gramian = every @ every.T
    return distances(gramian) if reads == "affine" else gramian


def distances(gramian):
    squares = np.diagonal(gramian, axis1=-2, axis2=-1)
    return squares[..., :, None] + squares[..., None, :] - 2 * gramian


def cases():
    """All from memory and each from one source more; the whole product in CI."""
    for place, source in enumerate((*SOURCES, None)):
        for index, asked in enumerate(READS):
            now = source is None or index % len(SOURCES) == place
            marks = () if now else pytest.mark.whole_zoo
            name = "-".join(str(x) for x in (source, *asked))
            yield pytest.param(source, *asked, marks=marks, id=name)


@pytest.mark.parametrize(("source", "reads", "per_leaf", "remembers"), [*cases()])
def test_products_are_what_they_say(source, reads, per_leaf, remembers):
    rows, weights = stacks()
    reducer = keeper(reads, per_leaf, remembers)
    read = in_steps(reducer, source, rows, weights, stepper)
    previous = np.zeros((2, STEPS, 0, P))
    if remembers:
        previous = np.roll(matrix(read.previous, 2), 1, axis=1)[:, :, None]
        read, previous[:, 0] = read.rule_state, 0  # there was none in the first step
    read = np.asarray(read, np.float64)  # (S, STEPS, [leaves,] ...)
    cuts = LEAVES if per_leaf else []
    for s, step in np.ndindex(2, STEPS):
        now = np.where(weights[s][:, None] > 0, rows[s, step].astype(float), 0)
        pairs = (np.split(x, cuts, 1) for x in (now, previous[s, step]))
        pairs = zip(*pairs, strict=True)
        wanted = np.stack([expected(x, weights[s], reads, old) for x, old in pairs])
        got = read[s, step]
        check(got if per_leaf else got[None], wanted, reads)


def check(got, wanted, reads):
    """To rounding of sums of P products, of each leaf."""
    absent = np.arange(got.shape[-1]) == ABSENT
    if reads != "norms":
        absent = absent[:, None] | absent[None, :]
    assert not got[:, absent].any()
    if reads == "affine":
        got = distances(got)
    for one, other in zip(got, wanted, strict=True):
        one, other = (np.where(absent, 0, x) for x in (one, other))
        rtol = 4 * np.sqrt(P) * np.finfo(np.float32).eps
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * np.abs(other).max())
