"""What a compiled program consists of, read off its HLO: loops, kernels, cycles."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# What starts nothing: names for values, and what has been started before.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_FREE |= {"after-all", "partition-id", "copy-done", "opt-barrier"}
_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_OPERATION = re.compile(
    r"^(?:ROOT )?%?(?P<name>[\w.\-]+) = .*? (?P<kind>[a-z][\w\-]*)\("
)
_CALLED = re.compile(
    r"(?:body|to_apply|branch_computations|true_computation|false_computation|"
    r"called_computations|calls)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CONSTANT = re.compile(r"%?([\w.\-]+) = s32\[\][^ ]* constant\((\d+)\)")
_LESS = re.compile(r"compare\((?P<operands>.*?)\), direction=LT")


class Program(NamedTuple):
    """Counts of one compiled program.

    Attributes:
      trips: turns of every loop, in order of its place; None where data decide.
      fusions: fusions in the program's text.
      least: kernels that are started and, on a TPU, the cycles that XLA expects of them
        ("kernels", "cycles"); those of a loop as often as it turns, once where data
        decide; of a conditional the branch that takes least.
      most: the same with the branch that takes most.
    """

    trips: tuple[int | None, ...]
    fusions: int
    least: Counter[str]
    most: Counter[str]


def read(hlo: str) -> Program:
    """Counts of an optimized module, as ``compiled.as_text()`` prints it."""
    computations, entry = _computations(hlo)
    trips: dict[str, int | None] = {}  # by the loop's name

    def cost(name: str, choose: Callable[..., Any]) -> Counter[str]:
        """Kernels and cycles of one computation and of what it runs."""
        total: Counter[str] = Counter()
        for line in computations[name]:
            found = _OPERATION.match(line)
            if not found:
                continue
            kind = found["kind"]
            if kind == "while":
                turns = trips[found["name"]] = _turns(line, computations)
                body = cost(_word(line, "body"), choose)
                total += Counter({key: n * (turns or 1) for key, n in body.items()})
            elif kind in ("conditional", "call"):
                branches = [cost(each, choose) for each in _called(line)]
                total += choose(branches, key=lambda c: (c["cycles"], c["kernels"]))
            elif kind not in _FREE:
                cycles = _CYCLES.search(line)
                total += Counter(kernels=1, cycles=int(cycles[1]) if cycles else 0)
        return total

    least, most = cost(entry, min), cost(entry, max)
    fusions = sum(" fusion(" in line for each in computations.values() for line in each)
    return Program(tuple(trips.values()), fusions, least, most)


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Lines of every computation by its name, and the name of the first to run."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        head = _HEAD.match(line)
        if head:
            name = head["name"]
            computations[name] = []
            entry = name if head["entry"] else entry
        elif name:
            computations[name].append(line.strip())
    return computations, entry


def _turns(line: str, computations: dict[str, list[str]]) -> int | None:
    """Trip count of a ``while``: as XLA says, or the constant that it counts to."""
    known = _TRIPS.search(line)
    if known:
        return int(known[1])
    condition = computations[_word(line, "condition")]
    constants = dict(pair for text in condition for pair in _CONSTANT.findall(text))
    root = next((text for text in condition if text.startswith("ROOT")), "")
    less = _LESS.search(root)
    names = re.findall(r"%?([\w.\-]+)", less["operands"]) if less else []
    bounds = [int(constants[each]) for each in names if each in constants]
    return bounds[0] if len(bounds) == 1 else None


def _word(line: str, key: str) -> str:
    found = re.search(rf"\b{key}=%?([\w.\-]+)", line)
    assert found, f"no {key} in: {line}"
    return found[1]


def _called(line: str) -> Iterator[str]:
    """Names of the computations of a conditional or a call."""
    for many, one in _CALLED.findall(line):
        yield from re.findall(r"%?([\w.\-]+)", many or one)
