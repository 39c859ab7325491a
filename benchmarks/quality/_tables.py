"""Tables of what was found, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.quality import _inference
from benchmarks.quality._answer import Answer
from benchmarks.quality._question import Question


def table(question: Question, found: Sequence[Answer], metric: str) -> str:
    """Means and standard errors at the end of training, arms against a setting."""
    columns, percent = _columns(question, found), _is_share(question, metric)
    shown = {
        (a.arm, _column(question, a)): _inference.estimate(a.curves[metric][:, -1])
        for a in found
        if metric in a.curves
    }
    arms = list(dict.fromkeys(a.arm for a in found if metric in a.curves))
    lines = [[question.column, *map(str, columns)]]
    for arm in arms:
        entries = [shown.get((arm, column)) for column in columns]
        lines.append([arm, *(_plus_minus(entry, percent) for entry in entries)])
    return _markdown(lines)


def differences(question: Question, found: Sequence[Answer], metric: str) -> str:
    """Paired differences to the baseline with 95 % intervals, as corrected.

    Under each column all arms are one family; a star says that Holm's adjusted p is
    below 0.05. The last line is the least true difference that would have been seen
    with probability 0.8 (uncorrected), the median over the arms.
    """
    columns, percent = _columns(question, found), _is_share(question, metric)
    gaps: dict[str, dict[str, _inference.Difference]] = {}
    for column in columns:
        here = {a.arm: a.curves for a in found if _column(question, a) == column}
        base = here.get(question.baseline, {}).get(metric)
        if base is not None and not np.isnan(base[:, -1]).all():
            gaps[str(column)] = {
                arm: _inference.difference(curves[metric][:, -1], base[:, -1])
                for arm, curves in here.items()
                if arm != question.baseline and metric in curves
            }
    arms = list(dict.fromkeys(arm for of in gaps.values() for arm in of))
    if not arms:
        return ""
    adjusted = {
        c: _inference.holm({a: d.p for a, d in of.items() if not np.isnan(d.p)})
        for c, of in gaps.items()
    }
    lines = [[f"to {question.baseline}", *gaps]]
    for arm in arms:
        entries = [
            _interval(of[arm], adjusted[column].get(arm, np.nan), percent)
            if arm in of
            else "-"
            for column, of in gaps.items()
        ]
        lines.append([arm, *entries])
    least = [_median([d.least for d in of.values()]) for of in gaps.values()]
    lines.append(["*least effect seen*", *(_number(x, percent) for x in least)])
    return _markdown(lines)


def choices(question: Question, found: Sequence[Answer]) -> str:
    """Which rows and rate each arm was trained with."""
    columns = _columns(question, found)
    shown = {(a.arm, _column(question, a)): a.choice for a in found}
    arms = list(dict.fromkeys(a.arm for a in found))
    free = any(a.choice.rows for a in found)  # 0: not a choice
    lines = [["rows, rate" if free else "rate", *map(str, columns)]]
    tell = lambda c: f"{c.rows}, {c.rate:g}" if c.rows else f"{c.rate:g}"
    for arm in arms:
        entries = [shown.get((arm, column)) for column in columns]
        lines.append([arm, *("-" if c is None else tell(c) for c in entries)])
    return _markdown(lines)


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.median(known)) if known else np.nan


def _columns(question: Question, found: Sequence[Answer]) -> list[object]:
    return list(dict.fromkeys(_column(question, a) for a in found))


def _column(question: Question, answer: Answer) -> object:
    return answer.setting.get(question.column, "")


def _is_share(question: Question, metric: str) -> bool:
    return question.shown[metric].endswith("%")


def _plus_minus(entry: _inference.Estimate | None, percent: bool) -> str:
    if entry is None or np.isnan(entry.mean):
        return "-"
    return f"{_number(entry.mean, percent)} ± {_number(entry.stderr, percent)}"


def _interval(gap: _inference.Difference, p: float, percent: bool) -> str:
    low, mean, high = (_number(x, percent, True) for x in (gap.low, gap.mean, gap.high))
    return f"{mean} [{low}, {high}]" + ("*" if p < 1 - _inference.LEVEL else "")


def _number(value: float, percent: bool, signed: bool = False) -> str:
    """Shares in percent; other numbers with three digits."""
    if np.isnan(value):
        return "-"
    if percent:
        return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    return f"{value:+.3g}" if signed else f"{value:.3g}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
