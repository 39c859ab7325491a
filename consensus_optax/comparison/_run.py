"""Trains the same models with each rule, a few steps in turn."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np

import consensus_optax as co
from consensus_optax import tasks
from consensus_optax.comparison._lab import Lab, Rule
from consensus_optax.comparison._result import PLAIN, Comparison, Curves
from consensus_optax.comparison._threads import compilers, in_thread

Progress = Callable[[str, int], None]


def compare(
    task: tasks.Task,
    rules: Mapping[str, co.Reducer],
    *,
    steps: int = 300,
    seeds: int = 3,
    learning_rate: float = 3e-3,
    width: int = 32,
    depth: int = 3,
    num_evaluations: int = 20,
    progress: Progress = lambda name, steps: None,
) -> Comparison:
    """Trains one small CNN per problem and seed with each rule ahead of Adam.

    Every rule starts from the same weights and sees the same examples in the same
    order. A step that a rule leaves empty is skipped (`consensus_optax.skip_if_empty`).
    The rules take turns, so an interrupted comparison is one of fewer steps, and times
    are comparable on a machine with other work. Plain Adam on the mean gradient,
    computed without rows, runs along as the floor of cost.

    Args:
      task: the problems.
      rules: reducers by the name to report them under.
      steps: steps of training.
      seeds: independent starts for each problem.
      learning_rate: of Adam, the same for all rules.
      width: channels of the CNN.
      depth: its 3 x 3 convolutions.
      num_evaluations: how often to evaluate on the training and test examples.
      progress: called with a rule's name and the steps it has just done; 0 steps
        mean that its program is compiled, which all are side by side.

    Returns:
      The curves. After ``KeyboardInterrupt`` those of the steps finished, marked as
      interrupted; a rule that has finished none is left out. A rule that raises
      ``ValueError`` (it needs more rows, say) is left out too, with its message.

    Examples:
      >>> import consensus_optax as co
      >>> from consensus_optax import comparison, tasks
      >>> small = {"steps": 2, "seeds": 1, "width": 4, "depth": 1}
      >>> task = tasks.arc(["25ff71a9"])
      >>> result = compare(task, {"mean": co.mean()}, **small)
      >>> list(result.curves), result.steps.tolist()
      (['adam', 'mean'], [0, 1, 2])
    """
    model = {"learning_rate": learning_rate, "width": width, "depth": depth}
    records: dict[str, list[_Record]] = {}
    chunk = max(1, steps // num_evaluations)
    lengths = [min(chunk, steps - done) for done in range(0, steps, chunk)]
    failed: dict[str, str] = {}
    interrupted = False
    try:
        lab = Lab(task, seeds=seeds, **model)
        for name, found in _take_turns(lab, {PLAIN: None, **rules}, lengths, progress):
            if isinstance(found, str):
                failed[name] = found
            else:
                records.setdefault(name, []).append(found)
    except KeyboardInterrupt:
        interrupted = True
    finished = {name: found for name, found in records.items() if len(found) > 1}
    num = min(map(len, finished.values()), default=1)
    return Comparison(
        task=task,
        settings={"steps": steps, "seeds": seeds, **model},
        steps=np.cumsum([0, *lengths])[:num],
        curves={name: _curves(found[:num]) for name, found in finished.items()},
        failed=failed,
        interrupted=interrupted,
    )


class _Record(NamedTuple):
    metrics: dict[str, np.ndarray]  # each (K, S)
    every_step: dict[str, np.ndarray]  # each (steps, K, S)
    seconds: float  # for one step


def _take_turns(
    lab: Lab, rules: dict[str, Rule], lengths: list[int], progress: Progress
) -> Iterator[tuple[str, _Record | str]]:
    """Yields a record of each rule for each round, or once why it cannot work.

    A rule's first record is that of the start. Nothing runs before all is compiled: it
    would be timed on a busy machine.
    """
    pool = compilers()
    try:
        evaluation = pool.submit(lab.trace_evaluation())
        fits: dict[str, Any] = {}
        programs: dict[str, Future[Any]] = {}
        for name, rule in rules.items():
            try:
                fits[name] = lab.start(rule)
                compile_it = lab.trace(rule, fits[name], max(lengths))
            except ValueError as error:
                yield name, str(error)
                continue
            programs[name] = pool.submit(compile_it)
        runs = {}
        for name, program in programs.items():
            runs[name] = program.result()
            progress(name, 0)
        evaluate = evaluation.result()
    finally:  # after Ctrl-C nobody waits for what is not compiled
        pool.shutdown(wait=False, cancel_futures=True)
    for name in runs:
        yield name, _Record(in_thread(evaluate, fits[name]), {}, 0.0)
    for length in lengths:
        for name, run in runs.items():
            begin = time.perf_counter()
            fits[name], metrics = in_thread(run, fits[name], length)
            seconds = (time.perf_counter() - begin) / length
            every_step = {k: np.moveaxis(v, -1, 0) for k, v in metrics.items()}
            found = in_thread(evaluate, fits[name])
            yield name, _Record(found, every_step, seconds)
            progress(name, length)


def _curves(records: list[_Record]) -> Curves:
    _, *rounds = records
    return Curves(
        metrics=jax.tree.map(lambda *x: np.stack(x), *(r.metrics for r in records)),
        every_step=jax.tree.map(
            lambda *x: np.concatenate(x), *(r.every_step for r in rounds)
        ),
        seconds=np.array([r.seconds for r in rounds]),
    )
