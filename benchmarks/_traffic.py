"""Bytes that a compiled program sends, read off its HLO."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "u16": 2, "s16": 2}
_SIZES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_COLLECTIVE = re.compile(
    r"= (?P<result>.+?) (?P<kind>all-reduce|all-gather|all-to-all|reduce-scatter|"
    r"collective-permute|ragged-all-to-all|collective-broadcast)(-start)?\("
)
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


def collectives(hlo: str) -> Iterator[tuple[str, int]]:
    """Kind and bytes of the whole result of every collective in a compiled program."""
    for line in hlo.splitlines():
        found = _COLLECTIVE.search(line)
        if found:
            shapes = _SHAPE.findall(found["result"])
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
        total += size * (2 if kind == "all-reduce" else 1)
    return total * (num_devices - 1) / num_devices
