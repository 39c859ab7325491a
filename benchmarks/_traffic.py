"""Bytes that a compiled program sends, read off its HLO."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from benchmarks import _programs

_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "u16": 2, "s16": 2}
_SIZES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_COLLECTIVE = re.compile(
    r"= (?P<result>.+?) (?P<kind>all-reduce|all-gather|all-to-all|reduce-scatter|"
    r"collective-permute|ragged-all-to-all|collective-broadcast)(?P<start>-start)?\("
)
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_GROUPS = re.compile(
    r"replica_groups=(?:\{\{(?P<first>[\d,]+)\}|\[\d+,(?P<size>\d+)\]<=)"
)
_STARTS = re.compile(r"(ROOT )?%?async-collective-start")


def collectives(hlo: str) -> Iterator[tuple[str, int]]:
    """Kind and bytes of the whole result of every collective in a compiled program."""
    for line in hlo.splitlines():
        found = _COLLECTIVE.search(line)
        if found:
            shapes = _SHAPE.findall(found["result"])
            if found["start"] and found["kind"] != "all-reduce":
                shapes = _results(shapes)
            size = lambda dims: math.prod(map(int, filter(None, dims.split(","))))
            yield found["kind"], sum(_SIZES[name] * size(dims) for name, dims in shapes)


def bytes_sent(hlo: str, num_devices: int) -> float:
    """Bytes that each device sends, each collective on a ring of N.

    An all-reduce of S bytes is 2 S (N - 1) / N; an all-gather or an all-to-all with a
    whole result of S bytes is S (N - 1) / N. Branches count all.
    """
    total = 0.0
    for kind, size in collectives(hlo):
        assert kind in ("all-reduce", "all-gather", "all-to-all"), kind
        total += _on_ring(kind, size, num_devices)
    return total


def bytes_in_turns(hlo: str, num_devices: int) -> float:
    """The same with loops as often as they turn, of branches the one that sends least.

    Of whatever kind, among the devices of its group; loops that data stop turn once.
    Where only one branch of a loop's turn sends anything it is a pass that the first
    turn makes, and counts once. An operation that is split over several fusions of a
    TPU counts where it starts.
    """
    parts, entry = _programs.computations(hlo)

    def sent(name: str) -> tuple[float, float]:
        """Bytes of every turn, and of the first one alone, if this is a loop's."""
        total = once = 0.0
        for line in parts[name]:
            kind = _programs.kind(line)
            inner = [sent(x) for x in _programs.called(line) if x in parts]
            if kind == "while":
                turns = _programs.turns(line, parts) or 1
                each, first = sent(_programs.word(line, "body"))
                total += turns * each + first
            elif kind == "conditional":
                sums = sorted(map(sum, inner))
                total += sums[0]
                once += 0 if any(sums[:-1]) else sums[-1]
            elif kind in ("call", "async-start") or _STARTS.match(line):
                total += sum(pair[0] for pair in inner)
                once += sum(pair[1] for pair in inner)
            for name_of, size in collectives(line):
                total += _on_ring(name_of, size, _group(line) or num_devices)
        return total, once

    return sent(entry)[0]


def _group(line: str) -> int | None:
    """How many devices a collective is among; None if that is not told, or all."""
    found = _GROUPS.search(line)
    if found is None:
        return None
    return int(found["size"]) if found["size"] else found["first"].count(",") + 1


def _on_ring(kind: str, size: int, count: int) -> float:
    """Bytes that a device sends for a collective with a result of so many."""
    if kind == "collective-permute":
        return size
    if kind == "reduce-scatter":
        return size * (count - 1)
    return size * (2 if kind == "all-reduce" else 1) * (count - 1) / count


def _results(shapes: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of operands, as many results, and counters the results."""
    numbers = [shape for shape in shapes if shape != ("u32", "")]
    return numbers[len(numbers) // 2 :]
