"""Random combinations: a right result, or an error that says what to do; nothing else.

    python -m tests._fuzz --cases 2000 --seed 0

A case is a rule of the zoo, what is around it, a source of rows, a dtype, a tree of
shapes, B, weights, and rows among which some are not finite or far away. Its update is
compared with the NumPy reference of the zoo. Where that itself changes as rows change
by roundings, as beside a threshold, it is right to that change.
"""

import argparse
import collections
import math
import sys
import traceback
from typing import Any, NamedTuple

import tests.conftest  # noqa: F401  (devices and flags, before anything is computed)

# isort: split
import hypothesis
import jax
import numpy as np
import optax
from hypothesis import strategies as st

from tests._fuzz_errors import FAULTS, documented
from tests._fuzz_rows import BAD, DTYPES, SHAPES, STYLES, draw_data
from tests._fuzz_steps import COMPUTED, DEVICES, PLACES, SOURCES, WHOLE, WRAPPERS, step
from tests.zoo import ZOO

SIGN = {"sgd": -1, "skip": -1, "multi_steps": -1, "apply_if_finite": -1}
NUM_PERTURBED = 8


class Case(NamedTuple):
    """One combination."""

    row: int  # of the zoo
    wrapper: str
    source: str
    place: str
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    num_rows: int
    style: str
    weighted: str
    bad: tuple[tuple[int, str], ...]  # (row, what is wrong with it)
    microbatch: int
    seed: int
    fault: str | None

    def __str__(self):
        return f"{ZOO[self.row]}: {self!r}"


def case_of(seed):
    """Any combination, every choice alike likely; faults in one of eight."""
    rng = np.random.default_rng(seed)
    one_of = lambda things: things[rng.integers(len(things))]
    num_rows = int(rng.integers(1, 10))
    shapes = [one_of(SHAPES) for _ in range(rng.integers(1, 5))]
    if not sum(int(np.prod(shape)) for shape in shapes):
        shapes = [*shapes, (3, 2)]
    place, wrapper = one_of(sorted(PLACES)), one_of(WRAPPERS)
    if place != "one device":
        num_rows += -num_rows % DEVICES
        wrapper = one_of(WHOLE) if "cut" in place else wrapper
    if wrapper == "accumulate":  # slices of what is cut are a matter of the user's
        place = "one device"
        num_rows += num_rows % 2
    microbatch = int(rng.integers(1, 5))
    if place != "one device":
        microbatch = math.gcd(microbatch, num_rows)
    broken = rng.permutation(num_rows)[: rng.integers(4)]  # no row twice
    bad = [(int(index), one_of(BAD)) for index in broken]
    return Case(
        row=int(rng.integers(len(ZOO))),
        wrapper=wrapper,
        source=one_of(SOURCES),
        place=place,
        dtype=one_of(sorted(DTYPES)),
        shapes=tuple(shapes),
        num_rows=num_rows,
        style=one_of(STYLES),
        weighted=one_of(("none", "padded", "counts", "nobody")),
        bad=tuple(bad),
        microbatch=microbatch,
        seed=int(rng.integers(2**32)),
        fault=one_of(sorted(FAULTS)) if rng.integers(8) == 0 else None,
    )


def outcome(case):
    """``"right"``, ``"right to rounding"``, ``"not known"`` or ``"documented error"``.

    Not known: the zoo says that float32 cannot know this update, a problem is solved
    with rows thousands of times as long as others (its residual is relative to the
    longest), or the reference divides by zero. Shape, dtype, counts and finiteness were
    right.

    Raises:
      AssertionError: neither; whatever was raised that is no error of ours.
    """
    with jax.enable_x64(case.dtype == "float64"), np.errstate(all="ignore"):
        data = draw_data(case)
        row = ZOO[case.row]
        if case.fault is not None or case.num_rows < row.least_rows:
            return _must_fail(case, row, data)
        params, updates, metrics = step(case, row, data)
        return _judged(case, row, data, params, updates, metrics)


def _must_fail(case, row, data):
    try:
        if case.fault is None:
            step(case, row, data)
        else:
            FAULTS[case.fault](row.make(case.num_rows), data)
    except (ValueError, TypeError) as error:
        if documented(error):
            return "documented error"
        raise
    raise AssertionError("no error")


def _judged(case, row, data, params, updates, metrics):
    moved = optax.apply_updates(params, updates)
    for before, after in zip(params, moved, strict=True):
        assert after.shape == before.shape
        assert after.dtype == before.dtype
        assert np.isfinite(np.asarray(after, np.float64)).all(), "nan in parameters"
    first = int(case.wrapper == "freeze" and case.source not in COMPUTED)
    got = [np.asarray(leaf, np.float64).reshape(-1) for leaf in updates]
    assert not any(np.any(leaf) for leaf in got[:first]), "a frozen leaf moves"
    got = np.concatenate([*got[first:], np.zeros(0)])
    any_leaf = len(params) > first
    present, num_bad = data.present(first)
    assert int(metrics["num_present"]) == (present.sum() if any_leaf else 0)
    assert int(metrics["num_nonfinite"]) == (num_bad if any_leaf else 0)
    if not got.size:
        return "right"
    sign = 1 if case.source in COMPUTED else SIGN.get(case.wrapper, 1)
    wanted = sign * data.reference(row, first, present, None)
    others = [
        sign * data.reference(row, first, present, np.random.default_rng(i))
        for i in range(NUM_PERTURBED)
    ]
    known = np.isfinite(wanted).all() and np.isfinite(others).all()
    solves = any(name.rsplit("/")[-1] == "residual" for name in metrics)
    if not known or data.hides(row, solves, first, present):
        return "not known"
    spread = np.abs(np.array(others) - wanted).max(0)
    size = np.abs(wanted).max()
    usual = data.rtol(row) * size
    gap = np.abs(got - wanted)
    if (gap <= usual).all():
        return "right"
    assert (gap <= usual + 4 * spread).all(), (
        f"off by {gap.max():.2e} of {size:.2e}, where roundings move "
        f"{spread.max():.1e}: {got} for {wanted}"
    )
    return "right to rounding"


def fuzz(num_cases, seed, tell=lambda number, counts: None, keep_going=False):
    """Counts of outcomes, and the cases that had none."""
    counts: collections.Counter[str] = collections.Counter()
    others: list[tuple[Any, str]] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=num_cases,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.integers(0, 2**63 - 1).map(case_of))
    def each(case):
        try:
            counts[outcome(case)] += 1
        except Exception:
            if not keep_going:
                raise
            counts["other"] += 1
            others.append((case, traceback.format_exc(limit=-3)))
            print(case, others[-1][1], sep="\n", file=sys.stderr, flush=True)
        number = sum(counts.values())
        tell(number, counts)
        if number % 100 == 0:
            jax.clear_caches()  # nothing compiled is used again

    with jax.numpy_dtype_promotion("standard"):
        each()
    return counts, others


def main():
    """Runs many cases and prints what became of them; fails if any is of no kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    def tell(number, counts):
        if number % 50 == 0:
            print(number, dict(counts), flush=True)

    counts, others = fuzz(given.cases, given.seed, tell, keep_going=True)
    print(f"{sum(counts.values())} cases:", dict(counts))
    sys.exit(bool(others))


if __name__ == "__main__":
    main()
