"""Laws that reducers promise, by name: each a function of (run, rtol).

``run(rows, weights)`` gives the `Outcome` of all stacks at once, (S, B, P) and (S, B)
in one compiled call; a law changes the stacks and compares. ``rtol`` is the reducer's,
relative to the largest entry of a stack's update.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tests._stacks import ALL, NAMES, P

POWERS = (0.25, 512.0)  # of 2: what cancels without rounding still does


class Outcome(NamedTuple):
    """What a reducer gives for S stacks."""

    update: np.ndarray  # (S, P)
    ready: np.ndarray  # (S,)
    num_present: np.ndarray  # (S,)
    num_nonfinite: np.ndarray  # (S,)


class Tolerance(NamedTuple):
    """Relative to the largest entry of an update; stacks that need more, by name."""

    usual: float
    loose: Mapping[str, float]

    def of(self, name):
        return self.loose.get(name, self.usual)

    def __rmul__(self, factor):
        loose = {name: factor * rtol for name, rtol in self.loose.items()}
        return Tolerance(factor * self.usual, loose)


def close(got, wanted, rtol, names=NAMES):
    """Asserts (S, P) equality relative to the largest entry of each stack."""
    of = rtol.of if isinstance(rtol, Tolerance) else lambda name: rtol
    size = np.abs(wanted).max(-1)
    gap = np.abs(got - wanted).max(-1)
    wrong = [
        f"{name}: off by {g:.1e} of {s:.1e}"
        for name, g, s in zip(names, gap, size, strict=True)
        if not g <= of(name) * s  # so that nan is wrong
    ]
    assert not wrong, "; ".join(wrong)


def order_is_irrelevant(run, rtol):
    expected = run(*ALL).update
    for order in ([5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 4, 3]):
        got = run(ALL.rows[:, order], ALL.weights[:, order]).update
        close(got, expected, 3 * rtol)  # sums in another order


def scales_with_the_rows(run, rtol):
    expected = run(*ALL).update
    for factor in POWERS:
        got = run(factor * ALL.rows, ALL.weights).update
        close(got, factor * expected, rtol)


def shifts_with_the_rows(run, rtol):
    """Taking one vector off every row takes it off the update."""
    keep = [i for i, name in enumerate(NAMES) if name not in ("tiny", "huge")]
    random = np.random.default_rng(5)
    shift = np.round(8 * random.normal(size=P)) / 8  # of few digits: little rounding
    expected = run(*ALL).update
    moved = run(ALL.rows - shift, ALL.weights)
    expected = np.where(ALL.present.any(1)[:, None], expected - shift, 0)
    close(moved.update[keep], expected[keep], 10 * rtol, [NAMES[i] for i in keep])


def scales_unless_tiny(run, rtol):
    """As above, where a constant such as 1e-10 is small against the rows."""
    keep = [i for i, name in enumerate(NAMES) if name != "tiny"]
    expected = run(*ALL).update[keep]
    for factor in POWERS:
        got = run(factor * ALL.rows, ALL.weights).update[keep]
        close(got, factor * expected, rtol, [NAMES[i] for i in keep])


def ignores_the_scale_unless_tiny(run, rtol):
    """The update is a direction, but for a constant beside the norms."""
    keep = [i for i, name in enumerate(NAMES) if name != "tiny"]
    expected = run(*ALL).update
    got = run(POWERS[1] * ALL.rows, ALL.weights).update
    close(got[keep], expected[keep], rtol, [NAMES[i] for i in keep])


def ignores_the_scale_of_each_row(run, rtol):
    factors = 2.0 ** np.array([-1, 2, 0, 5, -7, 1])[:, None]
    got = run(factors * ALL.rows, ALL.weights).update
    close(got, run(*ALL).update, rtol)


def stays_in_the_hull(run, rtol):
    """No direction in which the update reaches further than every present row."""
    update, ready = run(*ALL)[:2]
    random = np.random.default_rng(3)
    directions = np.concatenate([np.eye(P), -np.eye(P), random.normal(size=(64, P))])
    for s, name in enumerate(NAMES):
        if ready[s]:
            rows = ALL.rows[s][_present(s)]
            furthest = (rows @ directions.T).max(0)
            slack = 1e-5 * np.abs(rows).max()  # P rounded products against the hull
            beyond = update[s] @ directions.T - furthest
            assert (beyond <= slack).all(), name


def no_row_has_a_smaller_entry(run, rtol):
    """The bound of minmod, exactly: it copies an entry or gives 0."""
    update = run(*ALL).update
    for s, name in enumerate(NAMES):
        rows = ALL.rows[s][_present(s)]
        if len(rows):
            assert (np.abs(update[s]) <= np.abs(rows).min(0)).all(), name


def no_row_disagrees_in_sign(run, rtol):
    update = run(*ALL).update
    for s, name in enumerate(NAMES):
        rows = ALL.rows[s][_present(s)]
        assert (np.sign(update[s]) * np.sign(rows) >= 0).all(), name


def opposes_no_row(run, rtol):
    """<g_i, u> >= 0, up to 1e-3 of the two lengths: what regularisation costs."""
    update = run(*ALL).update
    for s, name in enumerate(NAMES):
        rows = ALL.rows[s][_present(s)]
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(update[s])
        assert (rows @ update[s] >= -1e-3 * lengths).all(), name


def opposes_no_row_of_like_lengths(run, rtol):
    """As above, where what is added to the Gramian is small against every row."""
    without = [name not in ("outlier", "outlier first") for name in NAMES]
    known = lambda *given: run(*given)._replace(
        update=np.where(np.array(without)[:, None], run(*given).update, 0)
    )
    opposes_no_row(known, rtol)


def equal_rows_give_that_row(run, rtol):
    update = run(*ALL).update[_at("equal")]
    close(update, ALL.rows[_at("equal"), 0], rtol, ["equal"])


def equal_rows_give_their_direction(run, rtol):
    update, row = run(*ALL).update[_at("equal")], ALL.rows[_at("equal"), 0]
    close(update, row / np.linalg.norm(row, axis=-1, keepdims=True), rtol, ["equal"])


def one_row_gives_that_row(run, rtol):
    update = run(*ALL).update[_at("one row")]
    close(update, ALL.rows[_at("one row"), 3], rtol, ["one row"])


def one_row_gives_its_direction(run, rtol):
    update, row = run(*ALL).update[_at("one row")], ALL.rows[_at("one row"), 3]
    close(update, row / np.linalg.norm(row, axis=-1, keepdims=True), rtol, ["one row"])


def is_never_longer_than_one(run, rtol):
    length = np.linalg.norm(run(*ALL).update, axis=-1)
    assert (length <= 1 + 1e-6).all()  # the rounding of the norms


def is_linear(run, rtol):
    keep = [i for i in range(len(NAMES)) if np.isfinite(ALL.rows[i]).all()]
    other = ALL.rows[:, [1, 0, 3, 2, 5, 4]]
    expected = run(*ALL).update + run(other, ALL.weights).update
    got = run(ALL.rows + other, ALL.weights).update
    names = [NAMES[i] for i in keep]
    close(got[keep], expected[keep], 3 * rtol, names)  # sums in another order


def is_zero_where_rows_cancel(run, rtol):
    """A stationary point: rows of equal norms that sum to zero, without rounding."""
    update = run(*ALL).update
    for name in ("zero", "opposite", "tie"):
        assert not update[_at(name)].any(), name


def weights_are_counts(run, rtol):
    """A row of weight 2 is two equal rows."""
    update = run(*ALL).update
    close(
        update[_at("weighted")], update[_at("repeated")], 3 * rtol, ["repeated"]
    )  # as above


def weights_say_presence_only(run, rtol):
    got, expected = run(ALL.rows, np.sign(ALL.weights)).update, run(*ALL).update
    close(got, expected, rtol)


def consensus_of_consensuses(run, rtol):
    """Two halves first, then their two results: the same, to the bit."""
    first, second = np.arange(6) < 3, np.arange(6) >= 3
    halves = [run(ALL.rows, np.where(half, ALL.weights, 0)) for half in (first, second)]
    rows = np.zeros_like(ALL.rows)
    rows[:, 0], rows[:, 1] = halves[0].update, halves[1].update
    weights = np.zeros_like(ALL.weights)
    weights[:, 0], weights[:, 1] = halves[0].num_present > 0, halves[1].num_present > 0
    np.testing.assert_array_equal(run(rows, weights).update, run(*ALL).update)


def _present(s):
    return ALL.present[s]


def _at(name):
    return [NAMES.index(name)]
