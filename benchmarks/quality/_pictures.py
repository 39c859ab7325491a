"""Pictures of what was found, with its errors: where training ends, or all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.quality import _inference
from benchmarks.quality._answer import Answer
from benchmarks.quality._question import Question

_MARKS = "osv^Dp*hX<>"


def picture(question: Question, found: Sequence[Answer]) -> Figure:
    """One panel for each metric that is pictured."""
    shown = {m: question.shown[m] for m in question.pictured}
    columns = {_column(question, answer) for answer in found}
    wide = 3.6 if question.over_steps else max(3.6, 1.1 * len(columns))
    across, down = (1, len(shown)) if wide > 8 else (len(shown), 1)
    figure = Figure(figsize=(2 + wide * across, 3.6 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, (metric, title) in zip(panels, shown.items(), strict=True):
        known = [answer for answer in found if metric in answer.curves]
        (_training if question.over_steps else _ends)(axes, question, known, metric)
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    lines = {
        label: line
        for axes in panels
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    title = question.column if question.over_steps else None
    place = "outside right center"
    figure.legend(lines.values(), lines.keys(), loc=place, fontsize=8, title=title)
    return figure


def _ends(axes: Any, question: Question, found: Sequence[Answer], metric: str) -> None:
    """Points at the settings, one line for each arm."""
    columns = list(dict.fromkeys(_column(question, answer) for answer in found))
    ordered = not any(isinstance(_value(question, answer), str) for answer in found)
    arms = list(dict.fromkeys(answer.arm for answer in found))
    for index, arm in enumerate(arms):
        here = [answer for answer in found if answer.arm == arm]
        ends = [
            _inference.estimate(
                _shown(question, answer, metric)[:, -1]
                - _subtracted(question, found, answer, metric)
            )
            for answer in here
        ]
        places = [columns.index(_column(question, answer)) for answer in here]
        shift = 0.5 * ((index + 0.5) / len(arms) - 0.5)  # so that errors are seen
        axes.errorbar(
            np.array(places) + shift,
            [end.mean for end in ends],
            [end.stderr for end in ends],
            fmt=_MARKS[index % len(_MARKS)] + ("-" if ordered else ""),
            color=f"C{index % 10}",
            markersize=4,
            linewidth=1,
            capsize=2,
            label=arm,
        )
    names = columns if ordered else [name.replace(", ", "\n") for name in columns]
    axes.set_xticks(range(len(columns)), names, fontsize=8)
    axes.set_xlabel(question.column.replace("_", " "))
    if question.relative:
        axes.axhline(0, color="grey", linewidth=0.5)
        axes.set_ylabel(f"difference to {question.baseline}")


def _training(
    axes: Any, question: Question, found: Sequence[Answer], metric: str
) -> None:
    """Means over training, one line for each arm and setting, and bands of errors."""
    for answer in found:
        curve = _shown(question, answer, metric)
        part = question.size.steps / curve.shape[1]
        steps = part * (1 + np.arange(curve.shape[1]))
        mean, stderr = np.array([_inference.estimate(x) for x in curve.T]).T
        column = _column(question, answer)
        label = column if answer.arm == question.baseline else f"{answer.arm}, {column}"
        (line,) = axes.plot(steps, mean, label=label, linewidth=1.2)
        axes.fill_between(
            steps, mean - stderr, mean + stderr, alpha=0.2, color=line.get_color()
        )
    axes.set_xlabel("step")


def _subtracted(
    question: Question, found: Sequence[Answer], answer: Answer, metric: str
) -> np.ndarray | float:
    """Of the same setting and units; nothing where values stand for themselves."""
    if not question.relative:
        return 0.0
    (base,) = (
        other
        for other in found
        if (other.arm, other.setting) == (question.baseline, answer.setting)
    )
    return _shown(question, base, metric)[:, -1]


def _shown(question: Question, answer: Answer, metric: str) -> np.ndarray:
    """Curves (U, E), shares in per cent."""
    percent = question.shown[metric].endswith("%")
    return answer.curves[metric] * (100 if percent else 1)


def _column(question: Question, answer: Answer) -> str:
    return str(_value(question, answer))


def _value(question: Question, answer: Answer) -> object:
    return answer.setting.get(question.column, "")
