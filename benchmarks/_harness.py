"""One way to measure, for every script.

Contestants take turns within one run, so that a machine that slows down or is shared
slows all of them: what is reported is the ratio of each to the plain step of the same
round. Milliseconds are there to be read, not to be compared between runs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

RESULTS = Path(__file__).parent / "results"
SMOKE_RESULTS = Path(__file__).parents[1] / "runs" / "benchmarks-smoke"
Row = dict[str, Any]

_SHORT_S = 0.1  # steps below this are repeated within a turn, after an untimed one
_TURN_S = 0.03  # ... until they have taken this long
_LEAST_ROUNDS = 3


class Contestant(NamedTuple):
    """Something to time.

    Attributes:
      name: how results call it.
      run: one step, without arguments; returns when it is done.
      facts: what else is known of it (compile time, memory), copied to the results.
      baseline: name of the contestant that its ratio is to.
      executable: the compiled step, if there is one.
    """

    name: str
    run: Callable[[], Any]
    facts: Mapping[str, Any] = MappingProxyType({})
    baseline: str = "plain"
    executable: Any = None

    def on(self, *args: Any) -> Contestant:
        """The same compiled step on other arguments of the same shapes."""
        run = lambda: jax.block_until_ready(self.executable(*args))
        return self._replace(run=run)


def compiled(
    name: str,
    step: Callable[..., Any],
    *args: Any,
    compiles: int = 1,
    baseline: str = "plain",
    **facts: Any,
) -> Contestant:
    """A jitted step on fixed arguments, with its compile time and temporary memory.

    Args:
      name: how results call it.
      step: function of ``args``; nothing is donated.
      *args: pytrees of arrays.
      compiles: how often to compile; the shortest time counts.
      baseline: name of the contestant that its ratio is to.
      **facts: further facts.

    Returns:
      A contestant; facts ``compile_s`` (tracing included), ``temp_bytes``,
      ``output_bytes``.
    """
    times = []
    for _ in range(compiles):
        fresh = lambda *given: step(*given)  # a new function is traced anew
        start = time.perf_counter()
        executable = jax.jit(fresh).lower(*args).compile()
        times.append(time.perf_counter() - start)
    known = {"compile_s": round(min(times), 3), **_memory(executable), **facts}
    return Contestant(name, lambda: None, known, baseline, executable).on(*args)


def _memory(executable: Any) -> Row:
    """Bytes that a compiled step needs besides its arguments."""
    analysis = executable.memory_analysis()
    if analysis is None:
        return {"temp_bytes": None, "output_bytes": None}
    return {
        "temp_bytes": analysis.temp_size_in_bytes,
        "output_bytes": analysis.output_size_in_bytes,
    }


def interleave(
    contestants: Sequence[Contestant], repeats: int, seconds: float
) -> dict[str, list[dict[int, float]]]:
    """Times all contestants in turns.

    Every round starts one place further along the list. A contestant takes part in
    all rounds if it fits into its share of the time, otherwise in as many as fit (at
    least three), spread evenly; baselines take part in all.

    Args:
      contestants: the first is the plain step.
      repeats: number of rounds.
      seconds: time for each contestant.

    Returns:
      For every name the seconds of one step by round.
    """
    baselines = {contestant.baseline for contestant in contestants}
    estimate = {}
    for contestant in contestants:
        contestant.run()  # the first call may still allocate
        estimate[contestant.name] = elapsed(contestant.run)
    times: dict[str, dict[int, float]] = {c.name: {} for c in contestants}
    for turn in range(repeats):
        shift = turn % len(contestants)
        for contestant in [*contestants[shift:], *contestants[:shift]]:
            expected = estimate[contestant.name]
            rounds = max(_LEAST_ROUNDS, min(repeats, int(seconds / expected)))
            due = turn * rounds // repeats != (turn + 1) * rounds // repeats
            if due or contestant.name in baselines:
                times[contestant.name][turn] = _turn(contestant.run, expected)
    return times


def _turn(run: Callable[[], Any], expected: float) -> float:
    """Seconds of one step; a short step is run until it has its caches back."""
    if expected > _SHORT_S:
        return elapsed(run)
    run()
    count = max(1, min(10, math.ceil(_TURN_S / expected)))
    return statistics.median(elapsed(run) for _ in range(count))


def elapsed(run: Callable[[], Any]) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(
    contestants: Sequence[Contestant], repeats: int, seconds: float, **common: Any
) -> list[Row]:
    """Times contestants in turns and sums each up, with the functions beside."""
    return sum_up(contestants, interleave(contestants, repeats, seconds), **common)


def sum_up(
    contestants: Sequence[Contestant],
    times: Mapping[str, Mapping[int, float]],
    **common: Any,
) -> list[Row]:
    """One row for each contestant, printed as JSON.

    Args:
      contestants: those that were timed.
      times: seconds of a step by name and round.
      **common: what all rows share (workload, batch size, ...).

    Returns:
      Rows with median and quartiles of milliseconds and of the ratio to the baseline
      of the same round, and the contestant's facts.
    """
    facts = {contestant.name: contestant.facts for contestant in contestants}
    rows = []
    for contestant in contestants:
        own, plain = times[contestant.name], times[contestant.baseline]
        base = facts[contestant.baseline]
        rows.append(
            {
                **common,
                "contestant": contestant.name,
                "baseline": contestant.baseline,
                **_summary("ms", [1e3 * seconds for seconds in own.values()]),
                **_summary("ratio", [own[turn] / plain[turn] for turn in own]),
                "rounds": len(own),
                **contestant.facts,
                **_relative(contestant.facts, base, common.get("param_bytes")),
            }
        )
        show(rows[-1])
    return rows


def _summary(name: str, values: Sequence[float]) -> Row:
    """Median and quartiles."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    numbers = {name: statistics.median(values), f"{name}_q1": low, f"{name}_q3": high}
    return {key: float(f"{number:.4g}") for key, number in numbers.items()}


def _relative(
    facts: Mapping[str, Any], base: Mapping[str, Any], param_bytes: int | None
) -> Row:
    """Compile time and memory against the baseline's."""
    out: Row = {}
    if facts.get("compile_s") and base.get("compile_s"):
        out["compile_ratio"] = round(facts["compile_s"] / base["compile_s"], 2)
    if param_bytes and None not in (facts.get("temp_bytes"), base.get("temp_bytes")):
        above = facts["temp_bytes"] - base["temp_bytes"]
        out["temp_above_plain_in_params"] = round(above / param_bytes, 3)
    return out


def show(row: Row) -> None:
    """One row as one line of JSON, on the standard output."""
    print(json.dumps(row), flush=True)


def environment(*packages: str) -> Row:
    """Versions, device, number of processors and commit, for every row of a run."""
    versions = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "optax", "numpy", *packages):
        versions[package] = metadata.version(package)
    device = jax.devices()[0]
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "versions": versions,
        "platform": device.platform,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "cpu_count": len(affinity(0)) if affinity else os.cpu_count(),
        "commit": _commit(),
    }


def _processor() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """Short hash of the checkout, with a + if it was changed; None outside of git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    ask = lambda *words: subprocess.run(
        [*git, *words], capture_output=True, text=True, check=False
    )
    try:
        head = ask("rev-parse", "--short", "HEAD")
        changed = ask("status", "--porcelain", "--untracked-files=no", "--", "..")
    except OSError:
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def write(name: str, rows: Iterable[Row], env: Row, folder: Path) -> Path:
    """Writes rows, each with the environment, as a JSON array of one row a line.

    The file is the old one or the new one, whenever the process ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    lines = [json.dumps({**row, **env}) for row in rows]
    unfinished = path.with_suffix(".json.new")
    unfinished.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    unfinished.replace(path)
    print(f"wrote {len(lines)} rows to {path.name}", file=sys.stderr)
    return path


def read(name: str, folder: Path) -> list[Row]:
    """Rows of an earlier run, or none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all scripts share."""
    out = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    out.add_argument("--repeats", type=int, default=20, help="rounds")
    out.add_argument(
        "--seconds", type=float, default=10, help="time for each contestant"
    )
    out.add_argument("--smoke", action="store_true", help="tiny sizes, two rounds")
    out.add_argument("--out", type=Path, default=RESULTS, help="folder for results")
    return out


def parse(options: argparse.ArgumentParser, argv: Sequence[str] | None) -> Any:
    """Parsed options; smoke runs are short and never overwrite results."""
    args = options.parse_args(argv)
    args.repeats = 2 if args.smoke else max(args.repeats, 2)
    if args.smoke and args.out == RESULTS:
        args.out = SMOKE_RESULTS
    return args
