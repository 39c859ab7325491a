"""What is shown of the speed first: a table and a picture, of one and the same run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import _harness
from benchmarks._harness import Row
from benchmarks._workloads import NAMES

_COLORS = {"ours": "#1f77b4", "jax": "#7f7f7f", "torch": "#d62728"}
_SIDES = {"ours": "consensus_optax", "jax": "JAX", "torch": "torch"}


def bars(folder: Path) -> list[Row]:
    """One run's contestants on random data: that with the peers, if there was one."""
    rows = _harness.read("peers", folder) or [
        row for row in _harness.read("speed", folder) if row["regime"] == "disagreeing"
    ]
    found = []
    for row in rows:
        name, lazily, _ = row["contestant"].partition(" [lazy]")
        side = row.get("side") or ("ours" if lazily else "jax")
        if "plain" not in name and "adam" not in name and " [" not in name:
            bar = {"workload": row["workload"], "name": name, "side": side}
            found.append(bar | {"ratio": row["ratio"]})
    return sorted(found, key=lambda bar: list(_SIDES).index(bar["side"]))


def table(shown: Sequence[Row]) -> str:
    """Markdown: one line for each contestant, ours in bold type."""
    ratio = {(bar["name"], bar["workload"]): bar["ratio"] for bar in shown}
    lines = ["| | " + " | ".join(NAMES) + " |", "|---" * (len(NAMES) + 1) + "|"]
    for name, side in {bar["name"]: bar["side"] for bar in shown}.items():
        cells = [ratio.get((name, workload)) for workload in NAMES]
        texts = ["" if cell is None else number(cell) for cell in cells]
        texts = [f"**{text}**" if side == "ours" else text for text in texts]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def write(folder: Path) -> None:
    """Writes ``speed.md`` and ``speed.png``, if there is something to show."""
    shown = bars(folder)
    if shown:
        (folder / "speed.md").write_text(table(shown) + "\n", encoding="utf-8")
        plot(shown).savefig(folder / "speed.png", dpi=110)


def plot(shown: Sequence[Row]) -> Any:
    """Ratios to the plain step, one panel for each workload, logarithmic."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(bar["name"] for bar in shown))
    figure = Figure(figsize=(11, 1.6 + 0.27 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(NAMES), sharex=True, sharey=True)
    for axis, workload in zip(axes, NAMES, strict=True):
        _panel(axis, [bar for bar in shown if bar["workload"] == workload], names)
        axis.set_title(workload)
    axes[0].set_xscale("log")
    ratios = [bar["ratio"] for bar in shown]
    # the longest bar's number needs a quarter of the frame
    axes[0].set_xlim(min(0.9, *ratios) * 0.9, max(2.0, *ratios) ** 1.35)
    decades = [10**k for k in range(1 + int(math.log10(max(ratios))))]
    axes[0].set_xticks(decades, [f"{x:g}" for x in decades], fontsize=8)
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0].invert_yaxis()
    figure.supxlabel(
        "time of a step / time of the same framework's plain step, random data",
        fontsize=10,
    )
    patches = {bar["side"]: None for bar in shown}
    for side in patches:
        patches[side] = axes[0].barh(0, 0, color=_COLORS[side])
    figure.legend(
        list(patches.values()),
        [_SIDES[side] for side in patches],
        loc="outside upper left",
        ncols=len(patches),
        fontsize=9,
        frameon=False,
    )
    return figure


def _panel(axis: Any, shown: Sequence[Row], names: Sequence[str]) -> None:
    """One workload: horizontal bars from 1."""
    for bar in shown:
        place, ratio = names.index(bar["name"]), bar["ratio"]
        color = _COLORS[bar["side"]]
        axis.barh(place, ratio - 1, left=1, color=color, height=0.7)
        axis.text(max(ratio, 1) * 1.12, place, number(ratio), va="center", size=7.5)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
