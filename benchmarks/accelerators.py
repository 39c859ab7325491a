"""What do GPUs and TPUs get to run? Compiled without such a device; nothing is timed.

    python -m benchmarks.accelerators --targets h100 --reducers median

Every environment compiles for one kind of device: ``make aot-cuda``, ``make aot-tpu``.
Rows of other targets, workloads and reducers stay in the results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optax

import consensus_optax as co
from benchmarks import _harness, _steps, _targets, _workloads
from benchmarks._harness import Row
from benchmarks._steps import Step
from benchmarks._traffic import collectives
from benchmarks._workloads import Workload

REDUCERS: dict[str, Callable[[], Any]] = {
    **_steps.REDUCERS,
    "median": co.median,
    "trimmed_mean": lambda: co.trimmed_mean(1),
    "krum": lambda: co.krum(1),
    "geometric_median": co.geometric_median,
    "upgrad": co.upgrad,
}
# One of each kind: a fold, a weighting, norms, columns.
SMOKE: dict[str, Callable[[], Any]] = {
    "sign_consensus": co.sign_consensus,
    "cosine_filter": co.cosine_filter,
    "clip_examples, mean": lambda: optax.chain(co.clip_examples(1.0), co.mean()),
    "median": co.median,
}
BY_HAND = "vmap(grad), min/max"
_KEY = ("target", "workload", "contestant")
_TO_PLAIN = ("cycles", "cycles_most", "bundles", "flops", "bytes_accessed", "kernels")


def steps(work: Workload, names: Sequence[str]) -> Iterator[tuple[str, Step]]:
    """The plain step first; one written by hand; the reducers asked for."""
    yield "plain", _steps.plain(work)
    if BY_HAND in names:
        yield BY_HAND, _steps.stacked_min_max(work)
    for name, make in REDUCERS.items():
        if name in names:
            yield name, _steps.reduced(work, make(), "lazy")


def facts(target: str, step: Step, work: Workload) -> Row:
    """What XLA says of one compiled step; what it does not say of a GPU is None."""
    start = time.perf_counter()
    executable, program = _targets.program(
        lambda: _targets.compiled(target, step, work.params, work.batch)
    )
    seconds = time.perf_counter() - start
    analysis = executable.cost_analysis() or {}
    return {
        "compile_s": round(seconds, 1),
        "temp_bytes": executable.memory_analysis().temp_size_in_bytes,
        "collective_bytes": sum(size for _, size in collectives(executable.as_text())),
        "fusions": program.fusions,
        "kernels": program.least["kernels"],
        "kernels_most": program.most["kernels"],
        "loops": len(program.trips),
        "trips": program.trips,
        "cycles": program.least["cycles"] or None,
        "cycles_most": program.most["cycles"] or None,
        "bundles": program.least["bundles"] or None,
        "flops": analysis.get("flops"),
        "bytes_accessed": analysis.get("bytes accessed"),
        "optimal_seconds": analysis.get("optimal_seconds"),
    }


def rows_of(target: str, work: Workload, names: Sequence[str]) -> Iterator[Row]:
    """One row for every step of one workload, relative to the plain one."""
    plain: Row = {}
    for name, step in steps(work, names):
        known = facts(target, step, work)
        plain = plain or known
        ratios = {
            f"{key}_ratio": round(known[key] / plain[key], 3)
            for key in _TO_PLAIN
            if known[key] and plain[key]
        }
        yield {
            "benchmark": "accelerators",
            "target": target,
            "workload": work.name,
            "contestant": name,
            "batch_size": work.batch_size,
            "param_bytes": work.param_bytes,
            **known,
            **ratios,
            "temp_in_params": round(known["temp_bytes"] / work.param_bytes, 3),
        }


def table(rows: Sequence[Row], target: str, workload: str) -> str:
    """Markdown of one target and workload."""
    chosen = [r for r in rows if (r["target"], r["workload"]) == (target, workload)]
    heads = ["temporary / parameters", "kernels", "loops (turns)", "fusions"]
    on_tpu = any(row["cycles"] for row in chosen)
    if on_tpu:
        heads += ["bundles / plain", "cycles / plain", "flops / plain", "bytes / plain"]
    heads += ["compiled in s"]
    lines = [f"| {target}, {workload} | " + " | ".join(heads) + " |"]
    lines += ["|---" * (len(heads) + 1) + "|"]
    for row in chosen:
        turns = ", ".join("?" if n is None else str(n) for n in row["trips"])
        cells = [
            f"{row['temp_in_params']:.2f}",
            _span(row["kernels"], row["kernels_most"], "d"),
            f"{row['loops']} ({turns})" if row["loops"] else "0",
            str(row["fusions"]),
        ]
        if on_tpu:
            cells += [
                f"{row['bundles_ratio']:.2f}" if row.get("bundles_ratio") else "",
                _span(row["cycles_ratio"], row["cycles_most_ratio"], ".2f"),
                f"{row['flops_ratio']:.2f}",
                f"{row['bytes_accessed_ratio']:.2f}",
            ]
        cells += [f"{row['compile_s']:.0f}"]
        lines.append(f"| {row['contestant']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _span(least: float, most: float, form: str) -> str:
    texts = dict.fromkeys((format(least, form), format(most, form)))
    return " to ".join(texts)


def report(rows: Sequence[Row]) -> str:
    """All tables."""
    pairs = dict.fromkeys((row["target"], row["workload"]) for row in rows)
    return "\n\n".join(table(rows, *pair) for pair in pairs) + "\n"


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Rows in a fixed order; the new ones in the place of the same old ones."""
    by_key = {tuple(row[key] for key in _KEY): row for row in (*old, *new)}
    order = ["plain", BY_HAND, *REDUCERS]
    place = lambda row: (
        _targets.NAMES.index(row["target"]),
        _workloads.NAMES.index(row["workload"]),
        order.index(row["contestant"]),
    )
    return sorted(by_key.values(), key=place)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``accelerators.json`` and ``accelerators.md``, after every row."""
    options = _harness.parser(__doc__)
    options.add_argument("--targets", nargs="+", choices=_targets.NAMES)
    options.add_argument("--workload", nargs="+", choices=_workloads.NAMES)
    options.add_argument("--reducers", nargs="+", choices=(BY_HAND, *REDUCERS))
    args = _harness.parse(options, argv)
    targets = args.targets or _targets.available()
    if not targets:
        raise SystemExit("nothing to compile with: `make aot-cuda` or `make aot-tpu`")
    workloads = args.workload or (["mlp"] if args.smoke else _workloads.NAMES)
    names = args.reducers or (SMOKE if args.smoke else (BY_HAND, *REDUCERS))
    for target in targets:
        about = _targets.versions(target)
        for workload in workloads:
            work = _workloads.workload(workload, args.smoke)
            for row in rows_of(target, work, tuple(names)):
                _harness.show(row)
                old = _harness.read("accelerators", args.out)
                rows = merged(old, [{**row, **about}])
                _harness.write("accelerators", rows, {}, args.out)
                text = report(rows)
                (args.out / "accelerators.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
