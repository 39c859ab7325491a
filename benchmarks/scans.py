"""What does a step cost where layers or steps are in ``lax.scan``?

    python -m benchmarks.scans --repeats 9

Every rule on factored rows and on arrays, which is what rows of scans were; the floor
is ``jax.grad`` of the same scanned model.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import _harness, _scanned_workloads, _steps
from benchmarks._harness import Row, compiled
from benchmarks._workloads import Workload

REDUCERS = ("mean", "sign_consensus", "cosine_filter")
VIAS = ("lazy", "arrays")


def run(work: Workload, repeats: int, seconds: float) -> list[Row]:
    """One interleaved run, on random data."""
    steps = {"plain": _steps.plain(work)}
    for via in VIAS:
        for name in REDUCERS:
            steps[f"{name} [{via}]"] = _steps.ours(work, name, via)
    entries = [
        compiled(name, step, work.params, work.batch, compiles=2)
        for name, step in steps.items()
    ]
    return _harness.measure(
        entries,
        repeats,
        seconds,
        benchmark="scans",
        workload=work.name,
        batch_size=work.batch_size,
        param_bytes=work.param_bytes,
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown: ratio of the time, temporary memory, seconds to compile."""
    names = dict.fromkeys(row["workload"] for row in rows)
    lines = ["| times plain; temporary memory; compile | " + " | ".join(names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    cells = {(row["contestant"], row["workload"]): row for row in rows}
    for contestant in dict.fromkeys(row["contestant"] for row in rows):
        line = [_cell(cells[contestant, name]) for name in names]
        lines.append(f"| {contestant} | " + " | ".join(line) + " |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    memory = row["temp_bytes"] / row["param_bytes"]
    return f"{row['ratio']:.2f}; {memory:.1f} P; {row['compile_s']:.2f} s"


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``scans.json`` and ``scans.md``."""
    args = _harness.parse(_harness.parser(__doc__), argv)
    rows = []
    for name in _scanned_workloads.NAMES:
        work = _scanned_workloads.workload(name, args.smoke)
        rows += run(work, args.repeats, args.seconds)
    _harness.write("scans", rows, _harness.environment(), args.out)
    (args.out / "scans.md").write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
