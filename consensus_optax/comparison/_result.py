"""What a comparison leaves behind, and the statistics made from it."""

from typing import Any, NamedTuple

import numpy as np

from consensus_optax.tasks import Task

PLAIN = "adam"  # the plain mean gradient without rows: the floor of cost
METRICS = (
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "test_solved",
    "consensus_ratio",
)


class Curves(NamedTuple):
    """One rule's training. K problems, S seeds, E evaluations, T steps."""

    metrics: dict[str, np.ndarray]  # METRICS at each evaluation, (E, K, S)
    every_step: dict[str, np.ndarray]  # loss and fields of the rule's state, (T, K, S)
    seconds: np.ndarray  # time of each round of steps, (E - 1,)


class Comparison(NamedTuple):
    """The curves of all rules, cut to the steps that all of them have finished."""

    task: Task
    settings: dict[str, Any]
    steps: np.ndarray  # steps done at each evaluation, (E,)
    curves: dict[str, Curves]  # plain Adam first, as `PLAIN`
    failed: dict[str, str]  # rules that cannot work on these rows, and why
    interrupted: bool

    @property
    def rules(self) -> dict[str, Curves]:
        """The curves of the rules, without those of plain Adam."""
        return {name: c for name, c in self.curves.items() if name != PLAIN}


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    stderr: float


def estimate(values: np.ndarray) -> Estimate:
    """Mean and standard error over problems, or over seeds if there is one problem.

    Seeds of one problem are not independent evidence about other problems, so they are
    averaged first.

    Args:
      values: one number for each problem and seed, ``(K, S)``.

    Returns:
      The estimate; its standard error is nan if there is only one value to go by.

    Examples:
      >>> estimate(np.array([[1.0, 3.0], [4.0, 4.0]]))
      Estimate(mean=3.0, stderr=1.0)
    """
    return _of(values.mean(1) if values.shape[0] > 1 else values[0])


def seed_estimate(values: np.ndarray) -> Estimate:
    """Mean and standard error over seeds, for these very problems.

    Args:
      values: one number for each problem and seed, ``(K, S)``.

    Returns:
      The estimate.

    Examples:
      >>> seed_estimate(np.array([[1.0, 3.0], [4.0, 4.0]]))
      Estimate(mean=3.0, stderr=0.5)
    """
    return _of(values.mean(0))


def _of(sample: np.ndarray) -> Estimate:
    spread = sample.std(ddof=1) if len(sample) > 1 else np.nan
    return Estimate(float(sample.mean()), float(spread / np.sqrt(len(sample))))


def final(curves: Curves, metric: str) -> np.ndarray:
    """A metric after the last step, ``(K, S)``; the consensus ratio over all steps.

    Args:
      curves: one rule's curves.
      metric: one of `METRICS`.

    Returns:
      One number for each problem and seed.

    Examples:
      >>> ratio = np.array([[[0.5]], [[0.25]]])
      >>> final(Curves({"consensus_ratio": ratio}, {}, np.ones(1)), "consensus_ratio")
      array([[0.375]])
    """
    values = curves.metrics[metric]
    return values.mean(0) if metric == "consensus_ratio" else values[-1]


def relative_cost(curves: Curves, baseline: Curves) -> float:
    """Time of a step relative to the baseline's: the median over the rounds.

    Both ran one after the other in every round, so what slows the machine down for a
    while slows both.

    Args:
      curves: one rule's curves.
      baseline: those of plain Adam.

    Returns:
      The ratio.

    Examples:
      >>> slow, fast = (Curves({}, {}, np.array(s)) for s in ([2.0, 6.0], [1.0, 2.0]))
      >>> relative_cost(slow, fast)
      2.5
    """
    return float(np.median(curves.seconds / baseline.seconds))


def solved_grids(curves: Curves, num_test: np.ndarray) -> Estimate:
    """How many of all held-out examples are solved.

    Args:
      curves: one rule's curves.
      num_test: how many examples each problem holds out, ``(K,)``.

    Returns:
      The number over all problems, the mean over seeds; its standard error is the one
      over problems (or over seeds if there is one problem).

    Examples:
      >>> solved = np.array([[[1.0, 0.0], [1.0, 1.0]]])
      >>> curves = Curves({"test_solved": solved}, {}, np.ones(0))
      >>> solved_grids(curves, np.array([1, 2])).mean
      2.5
    """
    share = final(curves, "test_solved")
    mean, stderr = estimate(share * num_test[:, None])
    return Estimate(mean * len(share), stderr * len(share))


def difference(curves: Curves, reference: Curves, metric: str) -> Estimate:
    """A rule's final metric minus the reference's, paired by problem and seed.

    Both started from the same weights and saw the same examples, so the difference is
    known better than either number.

    Args:
      curves: one rule's curves.
      reference: another's.
      metric: one of `METRICS`.

    Returns:
      The estimate of the difference.

    Examples:
      >>> one, two = (Curves({"test_loss": np.array([[[a, a]]])}, {}, np.ones(0))
      ...             for a in (1.0, 0.5))
      >>> difference(one, two, "test_loss")
      Estimate(mean=0.5, stderr=0.0)
    """
    return estimate(final(curves, metric) - final(reference, metric))
