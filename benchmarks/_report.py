"""From results to tables: against the targets, the plain step, and the peers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import (
    _harness,
    _kept,
    _picture,
    breakdown,
    compression,
    unlike_and_late,
)
from benchmarks._harness import Row
from benchmarks._picture import number
from benchmarks._workloads import NAMES

# Ratio to the plain step that each reducer has to reach: mlp, cnn, transformer.
TARGETS: dict[str, tuple[float, float, float]] = {
    "sign_consensus": (2.5, 1.6, 1.15),
    "cosine_filter": (1.7, 2.0, 1.6),
    "subspace_weighting": (1.7, 2.0, 1.6),
    "sign_consensus(quorum=0.8)": (4.0, 2.0, 1.4),
    "clip_examples, mean": (1.7, 2.0, 1.5),
}
MEMORY_TARGETS = (1.5, None, 2.0)  # temporary memory above plain, in parameters
COMPILE_TARGETS = (4.0, 3.0, 3.0)
# Tables that scripts write themselves.
TABLES = {
    "gpu": "On a GPU",
    "scans": "Layers and steps inside `lax.scan`",
    "tasks": "Several losses",
    "uses": "Rows looked at, selected, followed by more than a rule",
    "privacy": "Private gradients",
    "memory": "Memory",
    "gauss_newton": "Second order in the span",
    "long_sequences": "Long sequences",
    "multihost": "The reduction alone, against `pmean`",
    "federated": "Federated rounds with dishonest clients",
    "compression": "Federated rounds with compressed messages",
    "client_memory": "A federated round of clients that keep something",
    "breakdown": "Accuracy against the share of attackers",
    "unlike_and_late": "Federated rounds of clients who are unlike, or late",
    "clients": "Rounds of many clients",
}


class Cell(NamedTuple):
    """The worse regime of one contestant on one workload."""

    ratio: float
    spread: tuple[float, float]
    row: Row


def worst(rows: Sequence[Row], name: str, workload: str) -> Cell | None:
    """The row with the highest ratio, over the regimes."""
    own = [r for r in rows if (r["contestant"], r["workload"]) == (name, workload)]
    if not own:
        return None
    row = max(own, key=lambda row: row["ratio"])
    return Cell(row["ratio"], (row["ratio_q1"], row["ratio_q3"]), row)


def best_way(rows: Sequence[Row], reducer: str, workload: str) -> Cell | None:
    """A reducer by its faster way, lazy or in microbatches, at the worse regime."""
    names = [f"{reducer} [{via}]" for via in ("lazy", "microbatches")]
    cells = [cell for name in names if (cell := worst(rows, name, workload))]
    return min(cells, key=lambda cell: cell.ratio, default=None)


def targets_table(rows: Sequence[Row]) -> str:
    """Markdown: ratio, memory and compile time against what was aimed for."""
    lines = ["| the faster of both ways | " + " | ".join(NAMES) + " |"]
    lines.append("|---" * (len(NAMES) + 1) + "|")
    for reducer, limits in TARGETS.items():
        cells = [best_way(rows, reducer, name) for name in NAMES]
        line = []
        for cell, limit, memory, compiling in zip(
            cells, limits, MEMORY_TARGETS, COMPILE_TARGETS, strict=True
        ):
            if cell is None:
                line.append("")
                continue
            above = cell.row.get("temp_above_plain_in_params")
            line.append(
                f"{_against(cell.ratio, limit, '×')}; "
                f"memory {_against(above, memory, 'P')}; "
                f"compile {_against(cell.row.get('compile_ratio'), compiling, '×')}"
            )
        lines.append(f"| {reducer} | " + " | ".join(line) + " |")
    return "\n".join(lines)


def _against(value: float | None, limit: float | None, unit: str) -> str:
    """A figure, bold with its limit where it misses that."""
    if value is None:
        return "?"
    text = f"×{value:.2f}" if unit == "×" else f"{value:+.2f} {unit}"
    return text if limit is None or value <= limit else f"**{text}** (> {limit:g})"


def full_table(rows: Sequence[Row]) -> str:
    """Markdown: every contestant, ratio with its quartiles, at the worse regime."""
    lines = ["| contestant | " + " | ".join(NAMES) + " |"]
    lines.append("|---" * (len(NAMES) + 1) + "|")
    for name in dict.fromkeys(row["contestant"] for row in rows):
        cells = [worst(rows, name, workload) for workload in NAMES]
        line = [
            f"×{number(cell.ratio)} ({number(cell.spread[0])}–"
            f"{number(cell.spread[1])}), {number(cell.row['ms'])} ms"
            if cell
            else ""
            for cell in cells
        ]
        lines.append(f"| {name} | " + " | ".join(line) + " |")
    return "\n".join(lines)


def table(folder: Path) -> str:
    """Everything that was measured, as markdown."""
    speed, peers = _harness.read("speed", folder), _harness.read("peers", folder)
    parts = [_heading(speed or peers)]
    if speed:
        parts += ["## Against the targets", targets_table(speed)]
        parts += ["## Against the plain step, in JAX", full_table(speed)]
    if peers:
        parts += [
            "## Peers, each against the plain step of its own framework",
            full_table(peers),
        ]
    fits = [row for row in _harness.read("scaling", folder) if row.get("fit")]
    if fits:
        parts += ["## Slopes of log(ms)", _slopes(fits)]
    for name, title in TABLES.items():
        path = folder / f"{name}.md"
        if path.exists():
            parts += [f"## {title}", path.read_text(encoding="utf-8").strip()]
    return "\n\n".join(parts) + "\n"


def _heading(rows: Sequence[Row]) -> str:
    """What was measured where."""
    if not rows:
        return "Nothing was measured."
    row = rows[0]
    versions = ", ".join(f"{name} {text}" for name, text in row["versions"].items())
    return (
        f"Median ratio to the plain step of the same round (quartiles), the worse of "
        f"both data regimes; {row['device']}, {row['cpu_count']} processors; "
        f"{versions}; commit {row['commit']}."
    )


def _slopes(fits: Sequence[Row]) -> str:
    """Markdown: one line for each contestant."""
    slope = {(fit["contestant"], fit["against"]): fit["slope"] for fit in fits}
    lines = ["| contestant | against B | against width |", "|---|---|---|"]
    for name in dict.fromkeys(fit["contestant"] for fit in fits):
        cells = [slope.get((name, a), "") for a in ("batch_size", "width")]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def write(folder: Path) -> None:
    """Writes tables and pictures from whatever results there are."""
    for benchmark in (breakdown, compression, unlike_and_late):
        _kept.present(benchmark.KIND, folder)
    (folder / "table.md").write_text(table(folder), encoding="utf-8")
    _picture.write(folder)
