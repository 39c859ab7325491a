"""Random combinations of everything; `make fuzz` runs as many as are asked for."""

import numpy as np
import pytest

from tests import _fuzz
from tests._fuzz import Case, case_of, fuzz, outcome
from tests._fuzz_errors import FAULTS
from tests.zoo import ZOO

pytestmark = pytest.mark.standard_promotion  # optax mixes its counts with floats


@pytest.mark.parametrize(
    "num_cases", [4, pytest.param(60, marks=pytest.mark.whole_zoo)]
)
def test_random_cases(num_cases):
    counts, others = fuzz(num_cases, seed=num_cases)
    assert not others
    assert sum(counts.values()) == num_cases
    assert counts["right"] > num_cases / 2


faults = [
    pytest.param(name, marks=pytest.mark.whole_zoo if place % 4 else ())
    for place, name in enumerate(FAULTS)
]


@pytest.mark.parametrize("fault", faults)
def test_every_fault_is_an_error_in_our_words(fault):
    case = case_of(0)._replace(fault=fault, dtype="float32", shapes=((3, 2), (4,)))
    assert outcome(case) == "documented error"


def plain(name, **changes):
    index = next(i for i, row in enumerate(ZOO) if str(row) == name)
    case = Case(
        row=index,
        wrapper="plain",
        source="arrays",
        place="one device",
        dtype="float32",
        shapes=((4,),),
        num_rows=5,
        style="noisy",
        weighted="none",
        bad=(),
        microbatch=2,
        seed=0,
        fault=None,
    )
    return case._replace(**changes)


def test_a_wrong_result_is_seen(monkeypatch):
    case = plain("median()")
    assert outcome(case) == "right"
    step = _fuzz.step

    def off(*given):
        params, updates, metrics = step(*given)
        return params, [leaf * (1 + 1e-3) for leaf in updates], metrics

    monkeypatch.setattr(_fuzz, "step", off)
    with pytest.raises(AssertionError, match="off by"):
        outcome(case)
    nan = lambda *given: (step(*given)[0], [np.full(4, np.nan)], step(*given)[2])
    monkeypatch.setattr(_fuzz, "step", nan)
    with pytest.raises(AssertionError, match="nan in parameters"):
        outcome(case)


# Found by it.
FOUND = {
    "no entries, reduced in the backward pass": plain(
        "krum(num_byzantine=0)", source="backward", shapes=((0, 3), (3, 2))
    ),
    "numbers of an accumulating fold": plain(
        "sign_consensus()", wrapper="accumulate", num_rows=4
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name):
    assert outcome(FOUND[name]) == "right"
