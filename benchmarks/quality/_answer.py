"""From a question to its cells: choose rows and rate apart, then ask."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.quality import _inference
from benchmarks.quality._cells import Cell, Cells, Found
from benchmarks.quality._fit import fit
from benchmarks.quality._question import Arm, Question, Setting

FIRST_TUNING_SEED = 1000  # no seed serves both


class Choice(NamedTuple):
    """What an arm is trained with."""

    rows: int
    rate: float


class Answer(NamedTuple):
    """What was found of one arm in one setting."""

    setting: Setting
    arm: str
    choice: Choice
    curves: dict[str, np.ndarray]  # (U, E): means of each unit


Say = Callable[[str], None]


def answers(
    question: Question, cells: Cells, say: Say, train: bool
) -> Iterator[Answer]:
    """Of all arms in all settings.

    Args:
      question: the question.
      cells: what is finished.
      say: told what is being done.
      train: whether what is not there is trained; else it is left out.
    """
    for setting in question.settings:
        for name, arm in question.arms(setting).items():
            choice = _chosen(question, setting, name, arm, cells, say, train)
            if choice is None:
                continue
            cell = _cell(question, setting, name, choice.rows, (choice.rate,), False)
            found = _found(question, cell, setting, arm, cells, say, train)
            if found is not None:
                curves = {key: np.array(values, float) for key, values in found.items()}
                yield Answer(setting, name, choice, curves)


def _chosen(
    question: Question,
    setting: Setting,
    name: str,
    arm: Arm,
    cells: Cells,
    say: Say,
    train: bool,
) -> Choice | None:
    """Best on what is kept apart, at the end of training, the mean over its units."""
    rates, best = question.size.rates, []
    there = question.tuned_at(setting)
    for rows in arm.rows or question.rows:
        if len(rates) == 1 and len(arm.rows or question.rows) == 1:
            return Choice(rows, rates[0])  # there is no choice
        cell = _cell(question, there, name, rows, rates, True)
        found = _found(question, cell, there, arm, cells, say, train)
        if found is None:
            return None
        ends = np.array(found[question.metric], float)  # (H,)
        ends = ends if question.higher_is_better else -ends
        ends = np.where(np.isfinite(ends), ends, -np.inf)
        best.append((ends.max(), Choice(rows, rates[int(ends.argmax())])))
    return max(best, key=lambda pair: pair[0])[1]


def _cell(
    question: Question,
    setting: Setting,
    arm: str,
    rows: int,
    rates: tuple[float, ...],
    tuning: bool,
) -> Cell:
    size = question.size
    seeds = size.tuning_seeds if tuning else size.seeds
    cell = {
        "setting": dict(setting),
        "arm": arm,
        "rows": rows,
        "rates": list(rates),
        "steps": size.steps,
        "seeds": seeds,
        "tuning": tuning,
    }
    first = FIRST_TUNING_SEED if tuning else size.first_seed
    usual = FIRST_TUNING_SEED if tuning else 0
    return cell if first == usual else {**cell, "first_seed": first}


def _found(
    question: Question,
    cell: Cell,
    setting: Setting,
    arm: Arm,
    cells: Cells,
    say: Say,
    train: bool,
) -> Found | None:
    known = cells.get(cell)
    if known is not None or not train:
        return known
    tuning, size = cell["tuning"], question.size
    first = FIRST_TUNING_SEED if tuning else size.first_seed
    seeds = range(first, first + cell["seeds"])
    what = "choosing the rate" if tuning else "final"
    say(f"{question.name}: {cell['arm']}, {cell['rows']} rows, {dict(setting)}, {what}")
    started = time.monotonic()
    try:
        problem = question.problem(setting, cell["rows"], seeds, tuning)
    except FileNotFoundError as error:
        say(f"left out: {error}")
        return None
    decay = float(setting.get("weight_decay", 0.0))
    shape = sorted((k, v) for k, v in setting.items() if k not in question.data_alone)
    program = (question.name, cell["arm"], cell["rows"], *shape)
    given = problem, arm, cell["rows"], tuple(cell["rates"])
    found = fit(*given, size, decay, program)
    if tuning:  # only what is chosen by is kept
        kept = {question.metric: found[question.metric][..., -1].mean(1)}  # (H,)
    else:
        of_units = lambda x: _inference.by_unit(x[0], problem.units)
        kept = {key: of_units(x) for key, x in found.items()}  # (U, E)
    return cells.add(cell, kept, time.monotonic() - started)
