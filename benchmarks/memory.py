"""How much memory does a step need besides parameters and data?

    python -m benchmarks.memory

Nothing is run: XLA's own plan of each compiled step says how many temporary bytes it
needs. Told in units of the parameters' bytes, against B and against the width of the
MLP; the plain step's own need (activations) stands beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks import _harness, _steps, _workloads
from benchmarks._harness import Row, compiled
from benchmarks._steps import Step
from benchmarks._workloads import Workload

BATCHES, WIDTHS = (8, 32, 128, 512), (256, 1024, 4096)
SMOKE_BATCHES, SMOKE_WIDTHS = (4, 8), (8, 16)
MICROBATCH = 8
OURS = (
    ("mean", "lazy"),
    ("sign_consensus", "lazy"),
    ("sign_consensus", "arrays"),
    ("sign_consensus", "microbatches"),
    ("sign_consensus(quorum=0.8)", "lazy"),
    ("cosine_filter", "lazy"),
    ("cosine_filter", "microbatches"),
    ("clip_examples, mean", "lazy"),
)


def steps(work: Workload) -> Iterator[tuple[str, Step]]:
    """The plain step first; in memory, microbatched, and written by hand."""
    yield "plain", _steps.plain(work)
    yield "vmap(grad), min/max", _steps.stacked_min_max(work)
    for name, via in OURS:
        label = f"{via} of {MICROBATCH}" if via == "microbatches" else via
        yield f"{name} [{label}]", _steps.ours(work, name, via, MICROBATCH)


def rows_of(work: Workload, **common: int | str) -> list[Row]:
    """One row for every step of one workload."""
    rows, base = [], 0
    for name, step in steps(work):
        facts = compiled(name, step, work.params, work.batch).facts
        base = base or facts["temp_bytes"]
        rows.append(
            {
                "benchmark": "memory",
                "workload": work.name,
                **common,
                "batch_size": work.batch_size,
                "param_bytes": work.param_bytes,
                "contestant": name,
                "temp_bytes": facts["temp_bytes"],
                "temp_in_params": round(facts["temp_bytes"] / work.param_bytes, 3),
                "temp_above_plain_in_params": round(
                    (facts["temp_bytes"] - base) / work.param_bytes, 3
                ),
            }
        )
        _harness.show(rows[-1])
    return rows


def run(smoke: bool = False) -> list[Row]:
    """The MLP over batch sizes and widths, and the other workloads as they are."""
    small = _workloads.SMOKE_SIZES["mlp"] if smoke else {}
    rows = []
    for batch_size in SMOKE_BATCHES if smoke else BATCHES:
        work = _workloads.mlp(**{**small, "batch_size": batch_size})
        rows += rows_of(work, against="batch_size", value=batch_size)
    for width in SMOKE_WIDTHS if smoke else WIDTHS:
        work = _workloads.mlp(**{**small, "width": width})
        rows += rows_of(work, against="width", value=width)
    for name in _workloads.NAMES:
        rows += rows_of(_workloads.workload(name, smoke), against="workload", value=0)
    return rows


def table(rows: Sequence[Row], against: str) -> str:
    """Markdown: temporary memory in parameters, one column for every size."""
    chosen = [row for row in rows if row["against"] == against]
    sizes = sorted({row["value"] for row in chosen})
    cells = {(row["contestant"], row["value"]): row["temp_in_params"] for row in chosen}
    lines = [
        f"| temporary memory / parameters, {against} = "
        + " | ".join(map(str, ["", *sizes]))[1:]
        + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for name in dict.fromkeys(row["contestant"] for row in chosen):
        numbers = [f"{cells[name, size]:.2f}" for size in sizes]
        lines.append(f"| {name} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``memory.json`` and ``memory.md``."""
    args = _harness.parse(_harness.parser(__doc__), argv)
    rows = run(args.smoke)
    _harness.write("memory", rows, _harness.environment(), args.out)
    tables = [table(rows, "batch_size"), table(rows, "width")]
    (args.out / "memory.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
