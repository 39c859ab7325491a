"""A comparison as a picture."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from consensus_optax.comparison._result import Comparison, estimate

_IN_A_PANEL = 8  # names that fit beside the curves
_STYLES = ("-", "--", ":", "-.")


def plot(result: Comparison) -> Figure:
    """Draws training accuracy, test accuracy and consensus ratio against steps.

    Args:
      result: from `consensus_optax.comparison.compare`; at least one rule. Plain Adam
        is the ``mean`` rule at another price and is drawn only if it is alone.

    Returns:
      A figure of three panels; bands are one standard error wide on either side.

    Examples:
      >>> import consensus_optax as co
      >>> from consensus_optax import comparison, tasks
      >>> small = {"steps": 2, "seeds": 1, "width": 4, "depth": 1}
      >>> task = tasks.arc(["25ff71a9"])
      >>> result = comparison.compare(task, {"mean": co.mean()}, **small)
      >>> len(plot(result).axes)
      3
    """
    unit, rules = result.task.unit, result.rules or result.curves
    panels = {
        "train_accuracy": f"train {unit} accuracy",
        "test_accuracy": f"test {unit} accuracy",
        "consensus_ratio": "consensus ratio",
    }
    curves = {name: curves.metrics for name, curves in rules.items()}
    trivial = result.task.trivial, float(result.task.trivial_accuracy.mean())
    return panels_of(result.steps, curves, panels, trivial, "step")


def panels_of(
    steps: np.ndarray,
    curves: Mapping[str, Mapping[str, np.ndarray]],
    panels: Mapping[str, str],
    trivial: tuple[str, float],
    unit: str,
) -> Figure:
    """A panel for each metric, a curve in it for each name.

    Args:
      steps: (E,) where it was looked at.
      curves: by name and metric, (E, K, S).
      panels: metrics and their titles.
      trivial: what needs no learning, and its test accuracy.
      unit: of ``steps``.

    Returns:
      A figure; bands are one standard error wide on either side.
    """
    below = len(curves) // 6 if len(curves) > _IN_A_PANEL else 0  # lines of a legend
    figure = Figure(figsize=(11, 3.4 + 0.25 * below), layout="constrained")
    for axes, (metric, title) in zip(
        figure.subplots(1, len(panels)), panels.items(), strict=True
    ):
        for index, (name, metrics) in enumerate(curves.items()):
            points = [estimate(values) for values in metrics[metric]]
            mean, stderr = np.array(points).T
            style = _STYLES[index // 10 % len(_STYLES)]  # after ten colours
            (line,) = axes.plot(steps, mean, style, label=name, linewidth=1.5)
            axes.fill_between(
                steps,
                mean - stderr,
                mean + stderr,
                color=line.get_color(),
                alpha=0.15,
                linewidth=0,
            )
        if metric == "test_accuracy":
            what, accuracy = trivial
            axes.axhline(accuracy, color="grey", linestyle=":", label=what)
            if below:
                lines = axes.get_legend_handles_labels()
                figure.legend(*lines, loc="outside lower center", ncols=6, fontsize=8)
            else:
                axes.legend(fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(unit)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_plot(result: Comparison, path: Path) -> None:
    """Writes the picture as PNG.

    Args:
      result: from `consensus_optax.comparison.compare`; at least one rule.
      path: the file.

    Examples:
      >>> from collections.abc import Mapping
    from pathlib import Path
      >>> import consensus_optax as co
      >>> from consensus_optax import comparison, tasks
      >>> small = {"steps": 2, "seeds": 1, "width": 4, "depth": 1}
      >>> task = tasks.arc(["25ff71a9"])
      >>> result = comparison.compare(task, {"mean": co.mean()}, **small)
      >>> path = Path("curves.png")
      >>> save_plot(result, path)
      >>> path.unlink()
    """
    plot(result).savefig(path, dpi=110)
