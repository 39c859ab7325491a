"""A comparison as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from consensus_optax.comparison._result import PLAIN, Comparison, estimate

_BESIDE = 16  # names that fit beside the panels
_STYLES = ("-", "--", ":", "-.")


def plot(result: Comparison) -> Figure:
    """Draws training accuracy, test accuracy and consensus ratio against steps.

    Args:
      result: from `consensus_optax.comparison.compare`; at least one rule, or plain
        Adam alone. Plain Adam is the black dashed line.

    Returns:
      A figure of three panels, the legend beside or below them; bands are one standard
      error wide on either side.

    Examples:
      >>> import consensus_optax as co
      >>> from consensus_optax import comparison, tasks
      >>> small = {"steps": 2, "seeds": 1, "width": 4, "depth": 1}
      >>> task = tasks.arc(["25ff71a9"])
      >>> result = comparison.compare(task, {"mean": co.mean()}, **small)
      >>> len(plot(result).axes)
      3
    """
    unit = result.task.unit
    panels = {
        "train_accuracy": f"train {unit} accuracy",
        "test_accuracy": f"test {unit} accuracy",
        "consensus_ratio": "consensus ratio",
    }
    curves = {name: curves.metrics for name, curves in result.rules.items()}
    trivial = result.task.trivial, float(result.task.trivial_accuracy.mean())
    plain = result.curves[PLAIN].metrics if PLAIN in result.curves else None
    return panels_of(
        result.steps, curves, panels, trivial, "step", plain, _title(result)
    )


def panels_of(
    steps: np.ndarray,
    curves: Mapping[str, Mapping[str, np.ndarray]],
    panels: Mapping[str, str],
    trivial: tuple[str, float],
    unit: str,
    plain: Mapping[str, np.ndarray] | None = None,
    title: str = "",
) -> Figure:
    """A panel for each metric, a curve in it for each name.

    Args:
      steps: (E,) where it was looked at.
      curves: by name and metric, (E, K, S).
      panels: metrics and their titles.
      trivial: what needs no learning, and its test accuracy.
      unit: of ``steps``.
      plain: plain Adam's curves by metric, or None.
      title: above all of it.

    Returns:
      A figure; bands are one standard error wide on either side.
    """
    num = len(curves) + 2
    below = -(-num // 5) if num > _BESIDE else 0  # lines of a legend
    height = 3.8 + 0.2 * below
    figure = Figure(figsize=(11 if below else 12.5, height), layout="constrained")
    drawn = np.atleast_1d(figure.subplots(1, len(panels)))
    for axes, (metric, name_of_panel) in zip(drawn, panels.items(), strict=True):
        for index, (name, metrics) in enumerate(curves.items()):
            style = _STYLES[index // 10 % len(_STYLES)]  # after ten colours
            _curve(axes, steps, metrics[metric], style, label=name)
        if plain is not None:  # last, as ``mean`` lies under it
            label = "plain Adam, no rows"
            _curve(axes, steps, plain[metric], (0, (4, 4)), label=label, color="black")
        if metric == "test_accuracy":
            what, accuracy = trivial
            label = f"{what} (test)"
            axes.axhline(accuracy, color="grey", linestyle=":", label=label)
        axes.set_title(name_of_panel, fontsize=10)
        axes.set_xlabel(unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    place = "outside lower center" if below else "outside right upper"
    lines = max((x.get_legend_handles_labels() for x in drawn), key=lambda x: len(x[0]))
    figure.legend(*lines, loc=place, ncols=5 if below else 1, fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10.5)
    return figure


def _curve(
    axes: Axes, steps: np.ndarray, values: np.ndarray, style: Any, **line: Any
) -> None:
    """One line with its band."""
    points = [estimate(value) for value in values]
    mean, stderr = np.array(points).T
    (drawn,) = axes.plot(steps, mean, linestyle=style, linewidth=1.5, **line)
    axes.fill_between(
        steps,
        mean - stderr,
        mean + stderr,
        color=drawn.get_color(),
        alpha=0.12,
        linewidth=0,
    )


def _title(result: Comparison) -> str:
    """Which task, and how it was trained."""
    settings, num = result.settings, len(result.task.problems)
    count = lambda number, word: f"{number} {word}{'s' * (number != 1)}"
    parts = [
        count(num, "problem"),
        count(settings["seeds"], "seed"),
        count(int(result.steps[-1]), "step")
        + f" of Adam at {settings['learning_rate']:g}",
    ]
    if settings.get("label_noise"):
        parts.append(f"{100 * settings['label_noise']:g} % of labels wrong")
    if result.interrupted:
        parts.append(f"interrupted, {settings['steps']} were asked for")
    return f"{result.task.name}: {', '.join(parts)}; bands: one standard error"


def save_plot(result: Comparison, path: Path) -> None:
    """Writes the picture as PNG.

    Args:
      result: from `consensus_optax.comparison.compare`; at least one rule.
      path: the file.

    Examples:
      >>> from pathlib import Path
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
