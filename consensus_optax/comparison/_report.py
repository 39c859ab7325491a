"""A comparison as a table and as JSON."""

from typing import Any

import numpy as np

from consensus_optax.comparison._format import (
    aligned,
    environment,
    json_text,
    plus_minus,
)
from consensus_optax.comparison._result import (
    METRICS,
    PLAIN,
    Comparison,
    Curves,
    difference,
    estimate,
    final,
    relative_cost,
    seed_estimate,
    solved_grids,
)


def table(result: Comparison) -> str:
    """The final numbers, one line per rule, as a Markdown table with its caption.

    Args:
      result: from `consensus_optax.comparison.compare`; at least one rule.

    Returns:
      Some lines of text.

    Examples:
      >>> import consensus_optax as co
      >>> from consensus_optax import comparison, tasks
      >>> small = {"steps": 2, "seeds": 1, "width": 4, "depth": 1}
      >>> task = tasks.arc(["25ff71a9"])
      >>> result = comparison.compare(task, {"mean": co.mean()}, **small)
      >>> print(table(result).splitlines()[0].split("|")[1].strip())
      rule
    """
    pixels = result.task.unit == "pixel"
    head = ["rule", "train loss", "train %", "test %", f"test, less {PLAIN}"]
    head += ["solved"] if pixels else []
    head += ["consensus %", "steps %", "ms/step", f"x {PLAIN}"]
    lines = []
    for name, curves in result.curves.items():
        loss, train, test, ratio = (
            estimate(final(curves, metric))
            for metric in (
                "train_loss",
                "train_accuracy",
                "test_accuracy",
                "consensus_ratio",
            )
        )
        gain = difference(curves, result.curves[PLAIN], "test_accuracy")
        line = [
            name,
            plus_minus(loss, 3),
            plus_minus(train, 2, 100),
            plus_minus(test, 2, 100),
        ]
        line += ["-" if name == PLAIN else plus_minus(gain, 2, 100, sign=True)]
        line += (
            [plus_minus(solved_grids(curves, _num_test(result)), 1)] if pixels else []
        )
        line += [plus_minus(ratio, 1, 100), f"{100 * _steps_taken(curves):.0f}"]
        line += [f"{1e3 * np.median(curves.seconds):.1f}"]
        line += [f"{relative_cost(curves, result.curves[PLAIN]):.2f}"]
        lines.append(line)
    return aligned([head, *lines]) + "\n\n" + caption(result)


def caption(result: Comparison) -> str:
    """What one must know to read the table.

    Args:
      result: from `consensus_optax.comparison.compare`.

    Returns:
      Some sentences, one a line.

    Examples:
      >>> import consensus_optax as co
      >>> from consensus_optax import comparison, tasks
      >>> small = {"steps": 2, "seeds": 1, "width": 4, "depth": 1}
      >>> task = tasks.arc(["25ff71a9"])
      >>> result = comparison.compare(task, {"mean": co.mean()}, **small)
      >>> "1 seed" in caption(result)
      True
    """
    task, settings = result.task, result.settings
    num, seeds, steps = len(task.problems), settings["seeds"], result.steps[-1]
    rows = "all training examples in random order, one row each"
    if task.num_rows is not None:
        rows = f"{task.num_rows} groups of {task.group_size} examples, one row each"
    over = "the problems, seeds averaged first" if num > 1 else "the seeds"
    trivial = 100 * task.trivial_accuracy.mean()
    lines = [
        f"{task.name}: {num} problem{'s' * (num > 1)} x {seeds} seed"
        f"{'s' * (seeds > 1)}, one model each; {steps} steps of Adam at learning rate "
        f"{settings['learning_rate']:g} for every rule, none tuned.",
        f"A step sees {rows}. Mean ± standard error over {over}.",
        f"train %, test %: {task.unit} accuracy; the latter of {task.trivial}: "
        f"{trivial:.2f}. less {PLAIN}: paired by problem and seed.",
        "consensus %: coordinates on which all rows agree in sign, mean over "
        "training, measured alike for every rule.",
        "steps %: steps taken; one on which a rule finds no agreement is skipped.",
        f"ms/step: of all {num * seeds} models together, median of "
        f"{len(result.steps) - 1} rounds in which the rules take turns; "
        f"{PLAIN} alone is plain Adam on the mean gradient, without rows.",
    ]
    if task.unit == "pixel":
        lines.insert(3, f"solved: of {_num_test(result).sum():.0f} test grids.")
    if result.interrupted:
        lines.append(f"Interrupted: {steps} of {settings['steps']} steps were done.")
    for name, curves in result.curves.items():
        if (waited := _longest_wait(curves)) >= _LONG:
            lines.append(
                f"{name}: for up to {waited} steps in a row less than 1 % of the "
                "coordinates moved, so it hardly trains: fewer rows, or a laxer "
                "threshold."
            )
    lines += [f"Left out: {name}: {why}" for name, why in result.failed.items()]
    return "\n".join(lines)


def to_json(result: Comparison) -> str:
    """Everything worth keeping: settings, versions, device, final numbers and curves.

    Args:
      result: from `consensus_optax.comparison.compare`.

    Returns:
      A JSON object.

    Examples:
      >>> import json
      >>> import consensus_optax as co
      >>> from consensus_optax import comparison, tasks
      >>> small = {"steps": 2, "seeds": 1, "width": 4, "depth": 1}
      >>> task = tasks.arc(["25ff71a9"])
      >>> result = comparison.compare(task, {"mean": co.mean()}, **small)
      >>> json.loads(to_json(result))["settings"]["seeds"]
      1
    """
    task = result.task
    report = {
        "task": {
            "name": task.name,
            "problems": task.problems,
            "train_examples": np.asarray(task.train.weights).sum(1).astype(int),
            "test_examples": _num_test(result).astype(int),
            "padded_to": task.train.inputs.shape[2:4],
            "num_rows": task.num_rows,
            "group_size": task.group_size,
            "trivial": {"what": task.trivial, "test_accuracy": task.trivial_accuracy},
        },
        "settings": result.settings,
        **environment(),
        "interrupted": result.interrupted,
        "failed": result.failed,
        "steps": result.steps,
        "rules": {name: _rule(result, name) for name in result.curves},
    }
    return json_text(report)


def _rule(result: Comparison, name: str) -> dict[str, Any]:
    curves = result.curves[name]
    gain = difference(curves, result.curves[PLAIN], "test_accuracy")
    summary = {
        metric: estimate(final(curves, metric))._asdict()
        | {"stderr_over_seeds": seed_estimate(final(curves, metric)).stderr}
        for metric in METRICS
    }
    means = {key: value.mean((1, 2)) for key, value in curves.every_step.items()}
    return {
        "final": summary,
        "solved_test_grids": solved_grids(curves, _num_test(result))._asdict(),
        "test_accuracy_difference": {"to": PLAIN, **gain._asdict()},
        "steps_taken": _steps_taken(curves),
        "ms_per_step": 1e3 * np.median(curves.seconds),
        "relative_cost": relative_cost(curves, result.curves[PLAIN]),
        "final_of_each_model": {
            metric: final(curves, metric)
            for metric in ("train_loss", "train_accuracy", "test_accuracy")
        },
        "curves": {
            metric: [estimate(values) for values in curves.metrics[metric]]
            for metric in METRICS
        },
        "every_step": means,
    }


def _num_test(result: Comparison) -> np.ndarray:
    return np.asarray(result.task.test.weights).sum(1)


def _steps_taken(curves: Curves) -> float:
    return float(np.mean(curves.every_step.get("consensus_ready", 1.0)))


_LONG = 10  # steps that a model stands still, so that one should be told


def _longest_wait(curves: Curves) -> int:
    """Most steps in a row in which a model had no consensus."""
    waited = curves.every_step.get("steps_without_consensus")
    return 0 if waited is None else int(np.max(waited))
