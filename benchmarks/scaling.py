"""How does the cost grow with the batch and with the width of the MLP?

    python -m benchmarks.scaling --repeats 7 --seconds 3

Every size is one interleaved run of its own. The slope of the log-log line is over the
larger half of the sizes: 1 against B and 2 against the width is what arithmetic asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import _harness, _steps, _workloads
from benchmarks._harness import Contestant, Row, compiled
from benchmarks._workloads import Workload

BATCHES = (8, 16, 32, 64, 128, 256, 512, 1024)
WIDTHS = (128, 256, 512, 1024, 2048, 4096)
SMOKE_BATCHES, SMOKE_WIDTHS = (4, 8), (8, 16)
MICROBATCH = 32
STACK_LIMIT = 2**31  # bytes: larger stacks are left out, for they may not fit
OURS = (
    ("mean", "lazy"),
    ("sign_consensus", "lazy"),
    ("sign_consensus", "microbatches"),
    ("sign_consensus(quorum=0.8)", "lazy"),
    ("cosine_filter", "lazy"),
    ("clip_examples, mean", "lazy"),
)


def contestants(work: Workload) -> list[Contestant]:
    """The plain step, one by hand while its stack fits, and ours."""
    steps = {"plain": _steps.plain(work)}
    if work.batch_size * work.param_bytes <= STACK_LIMIT:
        steps["vmap(grad), min/max"] = _steps.stacked_min_max(work)
    for name, via in OURS:
        label = f"{via} of {MICROBATCH}" if via == "microbatches" else via
        steps[f"{name} [{label}]"] = _steps.ours(work, name, via, MICROBATCH)
    return [
        compiled(name, step, work.params, work.batch) for name, step in steps.items()
    ]


def run(repeats: int, seconds: float, smoke: bool = False) -> list[Row]:
    """All sizes of both sweeps, on rows that agree: nothing stops early."""
    small = _workloads.SMOKE_SIZES["mlp"] if smoke else {}
    sweeps = {
        "batch_size": SMOKE_BATCHES if smoke else BATCHES,
        "width": SMOKE_WIDTHS if smoke else WIDTHS,
    }
    rows = []
    for against, sizes in sweeps.items():
        for size in sizes:
            work = _workloads.mlp(**{**small, against: size}).agreeing()
            rows += _harness.measure(
                contestants(work),
                repeats,
                seconds,
                benchmark="scaling",
                workload="mlp",
                against=against,
                value=size,
                batch_size=work.batch_size,
                param_bytes=work.param_bytes,
            )
    return rows


def slopes(rows: Sequence[Row], against: str) -> dict[str, float]:
    """Slope of log(ms) over log(size), over the larger half of the sizes."""
    chosen = [row for row in rows if row["against"] == against]
    out = {}
    for name in dict.fromkeys(row["contestant"] for row in chosen):
        line = [
            (row["value"], row["ms"]) for row in chosen if row["contestant"] == name
        ]
        line = line[-max(2, (len(line) + 1) // 2) :]
        if len(line) > 1:
            x, y = np.log(np.array(line)).T
            out[name] = round(float(np.polyfit(x, y, 1)[0]), 2)
    return out


def plot(rows: Sequence[Row], path: Path) -> None:
    """Milliseconds against batch size and width, both axes logarithmic."""
    import matplotlib.pyplot as plt

    sweeps = {"batch_size": "rows B (width 1024)", "width": "width (B = 64)"}
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.6), layout="constrained")
    for axis, (against, label) in zip(axes, sweeps.items(), strict=True):
        chosen = [row for row in rows if row["against"] == against]
        for name, slope in slopes(rows, against).items():
            own = [row for row in chosen if row["contestant"] == name]
            style = {"plain": {"color": "black", "linewidth": 2.5}}.get(name, {})
            axis.plot(
                [row["value"] for row in own],
                [row["ms"] for row in own],
                marker="o",
                markersize=3,
                label=f"{name}: slope {slope:.2f}",
                **style,
            )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel(label)
        axis.set_ylabel("ms for one step")
        axis.grid(alpha=0.3)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15)}
        axis.legend(fontsize=7, ncols=2, **below)
    figure.suptitle("MLP 784-width-width-10, all rows equal (nothing stops early)")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes ``scaling.json`` and ``scaling.png``."""
    args = _harness.parse(_harness.parser(__doc__), argv)
    rows = run(args.repeats, args.seconds, args.smoke)
    for against in ("batch_size", "width"):
        for name, slope in slopes(rows, against).items():
            fit = {"against": against, "contestant": name, "slope": slope}
            rows.append({"benchmark": "scaling", "fit": True, **fit, "value": None})
    _harness.write("scaling", rows, _harness.environment(), args.out)
    plot([row for row in rows if "fit" not in row], args.out / "scaling.png")


if __name__ == "__main__":
    main()
