"""A comparison as a picture."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from consensus_optax.comparison._result import Comparison, estimate


def plot(result: Comparison) -> Figure:
    """Draws training accuracy, test accuracy and consensus ratio against steps.

    Args:
      result: from `consensus_optax.comparison.compare`; at least one rule. Plain Adam
        is the ``mean`` rule at another price and is drawn only if it is alone.

    Returns:
      A figure of three panels; bands are one standard error wide on either side.

    Examples:
      >>> plot(result).savefig("curves.png")  # doctest: +SKIP
    """
    unit = result.task.unit
    panels = {
        "train_accuracy": f"train {unit} accuracy",
        "test_accuracy": f"test {unit} accuracy",
        "consensus_ratio": "consensus ratio",
    }
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, (metric, title) in zip(
        figure.subplots(1, len(panels)), panels.items(), strict=True
    ):
        for name, curves in (result.rules or result.curves).items():
            points = [estimate(values) for values in curves.metrics[metric]]
            mean, stderr = np.array(points).T
            (line,) = axes.plot(result.steps, mean, label=name, linewidth=1.5)
            axes.fill_between(
                result.steps,
                mean - stderr,
                mean + stderr,
                color=line.get_color(),
                alpha=0.15,
                linewidth=0,
            )
        if metric == "test_accuracy":
            trivial = float(result.task.trivial_accuracy.mean())
            axes.axhline(
                trivial, color="grey", linestyle=":", label=result.task.trivial
            )
            axes.legend(fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_plot(result: Comparison, path: Path) -> None:
    """Writes the picture as PNG.

    Args:
      result: from `consensus_optax.comparison.compare`; at least one rule.
      path: the file.

    Examples:
      >>> save_plot(result, Path("curves.png"))  # doctest: +SKIP
    """
    plot(result).savefig(path, dpi=110)
