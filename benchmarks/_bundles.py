"""What a TPU's compiler scheduled: the instruction bundles of every kernel.

``estimated_cycles`` in a compiled program are a cost model's, taken before there are
instructions, and several times off either way. The compiler also dumps what it made of
each kernel: one bundle is issued a cycle, and as nothing else decides when, a kernel
takes its bundles, those of a loop as often as it turns, or longer where it waits for
memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks import _programs

# A line of a dump: an address, what begins there, in how many loops it is; a bundle.
_BUNDLE = re.compile(
    r"^\s*(?:0x[0-9a-f]+|0)\s+(?P<mark>[A-Z]{2})?\s*: (?P<loops>[> ]*?)\{(?P<empty>\})?"
)
_EXIT = re.compile(r", (\d+) /\* loop exit test")
_STAGE = re.compile(r"iteration index, stage = (\d+)")
_BOUNDS = re.compile(r'"iteration_bounds":\[([^\]]*)\]')
_SHAPE_OF_LOOPS = re.compile(r'"kernel_window_bounds.*?"iteration_bounds":\[[^\]]*\]')
_FILE = re.compile(r"\d+-(?P<kernel>.+)-\d+-final_bundles\.txt")
_CALLED = re.compile(r", (?:calls|to_apply)=%?([\w.\-]+)")
_STAGES = 12  # turns at most that filling and emptying a pipeline adds


def options(folder: Path) -> str:
    """What libtpu has to be told, by ``LIBTPU_INIT_ARGS``, before it is loaded."""
    last = "--xla_jf_dump_llo_pass_label_regex=^final_bundles$"
    return f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true {last}"


def of_operations(hlo: str, folder: Path) -> dict[str, int]:
    """Bundles of every operation of a module that has instructions of its own.

    Kernels that are alike are compiled, and dumped, once: those of equal operations,
    whatever their names, are taken for each other.
    """
    parts, _ = _programs.computations(hlo)
    lines = dict(_operations(parts))
    dumped: dict[str, int] = {}
    for path in folder.glob("*-final_bundles.txt"):
        found = _FILE.match(path.name)
        line = lines.get(found["kernel"]) if found else None
        if line:
            bounds = _BOUNDS.search(line)
            turns = math.prod(map(int, re.findall(r"\d+", bounds[1] if bounds else "")))
            count = of_kernel(path.read_text(), turns if bounds else None)
            dumped[_alike(line, parts)] = count
    known = ((name, dumped.get(_alike(line, parts))) for name, line in lines.items())
    return {name: count for name, count in known if count is not None}


def of_kernel(dump: str, turns: int | None = None) -> int:
    """Bundles of one kernel, those of a loop as often as it turns.

    Args:
      dump: the kernel's bundles, as text.
      turns: how often XLA says that its own loop over windows turns, if it does.
        Pipelines turn some times more, to be filled and emptied, and do little then.

    Returns:
      The number; a loop whose turns data decide counts once, branches both.
    """
    # of the program and of each open loop: bundles, the bound that it counts to, stages
    open_loops = [[0, 0, 0]]

    def close() -> None:
        count, bound, stages = open_loops.pop()
        told = turns is not None and turns < bound <= turns + _STAGES
        open_loops[-1][0] += count * (turns if told else max(bound - stages, 1))

    for line in dump.splitlines():
        found = _BUNDLE.match(line)
        if not found:
            continue
        depth = found["loops"].count(">")
        begins = found["mark"] == "LB"
        # an empty bundle does not say where it is
        while not found["empty"] and len(open_loops) - 1 > max(depth - begins, 0):
            close()
        if begins:
            open_loops.append([0, 0, 0])
        loop = open_loops[-1]
        loop[0] += 1
        bound = _EXIT.search(line)
        loop[1] = int(bound[1]) if bound else loop[1]
        loop[2] = max([loop[2], *map(int, _STAGE.findall(line))])
    while len(open_loops) > 1:
        close()
    return open_loops[0][0]


def _operations(parts: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Names and lines of all."""
    for lines in parts.values():
        for line in lines:
            found = re.match(r"(?:ROOT )?%?([\w.\-]+) = ", line)
            if found:
                yield found[1], line


def _alike(line: str, parts: dict[str, list[str]]) -> str:
    """What operations have in common that are one kernel: all but names and sources."""
    own, _, config = line.partition("backend_config=")
    loops = _SHAPE_OF_LOOPS.search(config)
    shape = re.sub(r'"estimated_cycles":"\d+",', "", loops[0]) if loops else ""
    return "\n".join([_nameless([own.strip(" ,")]), shape, *_bodies(own, parts)])


def _bodies(line: str, parts: dict[str, list[str]]) -> Iterator[str]:
    for name in _CALLED.findall(line):
        body = [each.partition("backend_config=")[0] for each in parts.get(name, [])]
        yield _nameless(body)
        for each in body:
            yield from _bodies(each, parts)


def _nameless(lines: list[str]) -> str:
    """The text with every name replaced by its number."""
    text = re.sub(r", metadata=\{[^}]*\}", "", "\n".join(lines))
    text = re.sub(r"^ROOT ", "", _CALLED.sub("", text))
    numbers: dict[str, int] = {}
    number = lambda found: f"%{numbers.setdefault(found[1], len(numbers))}"
    return re.sub(r"%([\w.\-]+)", number, text)
