"""What a compiled program consists of, read off its HLO: loops, kernels, cycles."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
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
_CONSTANT = re.compile(r"%?([\w.\-]+) = [su]32\[\][^ ]* constant\((\d+)\)")
_NAME = re.compile(r"%?([\w.\-]+)")
_LESS = re.compile(r"compare\((?P<operands>.*?)\), direction=LT")


class Program(NamedTuple):
    """Counts of one compiled program.

    Attributes:
      trips: turns of every loop, in order of its place; None where data decide.
      fusions: fusions in the program's text.
      least: kernels that are started and, on a TPU, the cycles that XLA expects of them
        and the bundles of instructions that they are ("kernels", "cycles", "bundles");
        those of a loop as often as it turns, once where data decide; of a conditional
        the branch that takes least.
      most: the same with the branch that takes most.
    """

    trips: tuple[int | None, ...]
    fusions: int
    least: Counter[str]
    most: Counter[str]


def read(hlo: str, bundles: Mapping[str, int] = MappingProxyType({})) -> Program:
    """Counts of an optimized module, as ``compiled.as_text()`` prints it.

    ``bundles`` of its operations by name, where they are known.
    """
    parts, entry = computations(hlo)
    trips: dict[str, int | None] = {}  # by the loop's name

    def cost(name: str, choose: Callable[..., Any]) -> Counter[str]:
        """Kernels and cycles of one computation and of what it runs."""
        total: Counter[str] = Counter()
        for line in parts[name]:
            found = _OPERATION.match(line)
            if not found:
                continue
            kind = found["kind"]
            if kind == "while":
                count = trips[found["name"]] = turns(line, parts)
                body = cost(word(line, "body"), choose)
                total += Counter({key: n * (count or 1) for key, n in body.items()})
            elif kind in ("conditional", "call"):
                branches = [cost(each, choose) for each in called(line)]
                size = lambda c: (c["cycles"], c["bundles"], c["kernels"])
                total += choose(branches, key=size)
            elif kind not in _FREE:
                cycles = _CYCLES.search(line)
                total += Counter(
                    kernels=1,
                    cycles=int(cycles[1]) if cycles else 0,
                    bundles=bundles.get(found["name"], 0),
                )
        return total

    least, most = cost(entry, min), cost(entry, max)
    fusions = sum(" fusion(" in line for each in parts.values() for line in each)
    return Program(tuple(trips.values()), fusions, least, most)


def computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Lines of every computation by its name, and the name of the first to run."""
    parts: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        head = _HEAD.match(line)
        if head:
            name = head["name"]
            parts[name] = []
            entry = name if head["entry"] else entry
        elif name:
            parts[name].append(line.strip())
    return parts, entry


def kind(line: str) -> str:
    """What operation a line is, if it is one."""
    found = _OPERATION.match(line)
    return found["kind"] if found else ""


def turns(line: str, parts: dict[str, list[str]]) -> int | None:
    """Trip count of a ``while``: as XLA says, or the constant that it counts to."""
    known = _TRIPS.search(line)
    if known:
        return int(known[1])
    condition = parts[word(line, "condition")]
    constants = _constants(condition)
    less = _LESS.search(_root(condition))
    names = _NAME.findall(less["operands"]) if less else []
    bounds = [constants[each] for each in names if each in constants]
    if len(bounds) != 1:
        return None
    counters = [each for each in names if each not in constants]
    return -(-bounds[0] // _step(counters, condition, parts[word(line, "body")]))


def _step(counters: list[str], condition: list[str], body: list[str]) -> int:
    """By how much a turn counts on: 1, but where the compiler took several in one."""
    element = rf"%?{re.escape(counters[0])} = .*get-tuple-element\(.*index=(\d+)"
    places = [found[1] for text in condition if (found := re.match(element, text))]
    _, _, carried = _root(body).partition(" tuple(")
    names = re.findall(r"%([\w.\-]+)", carried.partition(")")[0])
    if not places or not names:
        return 1
    counter, constants = names[int(places[0])], _constants(body)
    made = rf"%?{re.escape(counter)} = .* add\((.*?)\)"
    sums = [found[1] for text in body if (found := re.match(made, text))]
    steps = [
        constants[x] for text in sums for x in _NAME.findall(text) if x in constants
    ]
    return max(steps, default=1)


def _constants(lines: list[str]) -> dict[str, int]:
    pairs = (pair for text in lines for pair in _CONSTANT.findall(text))
    return {name: int(number) for name, number in pairs}


def _root(lines: list[str]) -> str:
    return next((text for text in lines if text.startswith("ROOT")), "")


def word(line: str, key: str) -> str:
    """What follows ``key=`` in a line."""
    found = re.search(rf"\b{key}=%?([\w.\-]+)", line)
    assert found, f"no {key} in: {line}"
    return found[1]


def called(line: str) -> Iterator[str]:
    """Names of the computations of a conditional or a call."""
    for many, one in _CALLED.findall(line):
        yield from re.findall(r"%?([\w.\-]+)", many or one)
