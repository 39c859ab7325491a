"""What a question is: problems, arms, and how many of what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import consensus_optax as co

Setting = Mapping[str, Any]  # of numbers and words, as JSON has them
Tree = Any


class Problem(NamedTuple):
    """What is trained, for every replicate: a seed, or a seed of one of many tasks.

    Attributes:
      init: parameters from a key.
      rows: ``rows(params, batch)`` gives losses (B,) and rows (B, ...).
      batch: ``batch(train, key, step)`` gives a batch and weights of its rows, or None.
      scores: ``scores(params, train, valid, test)`` gives numbers by name.
      data: train, valid and test; leaves have a leading axis of replicates.
      units: (R,) what a replicate belongs to: errors are over units.
      look: ``look(reducer, params, batch, losses, rows)`` gives more numbers by name,
        of a batch at an evaluation.
    """

    init: Callable[[jax.Array], Tree]
    rows: Callable[[Tree, Tree], tuple[jax.Array, Tree]]
    batch: Callable[[Tree, jax.Array, jax.Array], tuple[Tree, jax.Array | None]]
    scores: Callable[..., dict[str, jax.Array]]
    data: tuple[Tree, Tree, Tree]
    units: np.ndarray
    look: Callable[..., dict[str, jax.Array]] = lambda *_: {}


class Arm(NamedTuple):
    """A way to train.

    Attributes:
      reducer: makes the rule for so many rows.
      around: puts what else belongs to the arm around Adam of a rate; Adam alone moves
        on by its momentum where nothing was agreed on.
      length: steps to those of the others, for a baseline of equal cost.
      rows: numbers of rows to choose from, None: those of the question.
      ahead: row transformations ahead of the reducer.
    """

    reducer: Callable[[int], Any]
    around: Callable[[Any], Any] = co.skip_if_empty
    length: float = 1.0
    rows: tuple[int, ...] | None = None
    ahead: tuple[Callable[[], Any], ...] = ()

    def optimizer(self, rows: int, rate: Any, decay: Any) -> Any:
        """The whole chain for so many rows, at a rate, which may be a schedule."""
        adam = optax.adamw(rate, weight_decay=decay)
        ahead = [make() for make in self.ahead]
        around = self.around(optax.flatten(adam))  # one leaf: soon compiled
        return optax.chain(*ahead, self.reducer(rows), around)


class Size(NamedTuple):
    """How much of everything.

    Attributes:
      steps: of an arm of length 1.
      seeds: that answer.
      tuning_seeds: that rows and rates are chosen by.
      rates: to choose from.
      evaluations: how often it is looked, at equal distances.
      looks: batches that are looked at in an evaluation; nan: nothing to see.
      first_seed: of those that answer.
      falls_after: share of the steps after which the rate is a tenth; 1: never.
    """

    steps: int
    seeds: int
    tuning_seeds: int
    rates: tuple[float, ...]
    evaluations: int = 10
    looks: int = 1
    first_seed: int = 0
    falls_after: float = 1.0


class Question(NamedTuple):
    """One question, as data.

    Attributes:
      name: of the results.
      problem: ``problem(setting, rows, seeds, tuning)``; with ``tuning`` nothing of it
        may serve the answer.
      settings: what is asked for each of.
      arms: by name, for a setting.
      rows: numbers of rows to choose from, where an arm names none.
      size: as published.
      metric: what rates and rows are chosen by, on what is kept apart for that.
      shown: metrics of the tables, with titles; shares say so, by a % at the end.
      pictured: which of them the picture has.
      column: the key of a setting that tables have columns of.
      data_alone: keys of a setting that change data and no shape: these settings share
        programs.
      tuned_at: the setting whose choice serves this one.
      baseline: the arm that others are compared with.
      higher_is_better: of ``metric``.
      over_steps: whether the picture shows training, and not where it ends.
      relative: whether it shows paired differences to the baseline.
      asked_by_name: whether it is left out where no name is given: more than two
        cores can bear.
    """

    name: str
    problem: Callable[[Setting, int, Sequence[int], bool], Problem]
    settings: tuple[Setting, ...]
    arms: Callable[[Setting], Mapping[str, Arm]]
    rows: tuple[int, ...]
    size: Size
    shown: Mapping[str, str]
    pictured: tuple[str, ...]
    column: str
    data_alone: tuple[str, ...] = ()
    metric: str = "valid_accuracy"
    tuned_at: Callable[[Setting], Setting] = lambda setting: setting
    baseline: str = "mean"
    higher_is_better: bool = True
    over_steps: bool = False
    relative: bool = False
    asked_by_name: bool = False


def smoke(question: Question) -> Question:
    """The same at a size that shows that it runs."""
    first, *_ = question.settings
    few = dict(list(question.arms(first).items())[:2])
    shorter = {
        name: arm._replace(rows=(arm.rows or question.rows)[:1])
        for name, arm in few.items()
    }
    size = question.size._replace(
        steps=2, seeds=2, tuning_seeds=1, rates=question.size.rates[:1], evaluations=1
    )
    return question._replace(
        settings=(first,), arms=lambda _: shorter, size=size, tuned_at=lambda s: s
    )


def baselines(longer: float = 1.3, rows: int = 0) -> dict[str, Arm]:
    """What stands in every table.

    Args:
      rows: of those to which their number is nothing, in a batch of a given size; 0: no
        such choice.
      longer: steps of the baseline whose cost is that of a rule, to the others' (the
        dearest rule of the two models of ``benchmarks/results/table.md`` takes so long
        to the plain step).
    """
    mean = Arm(always(co.mean), rows=(rows,) if rows else None)
    return {
        "mean": mean,
        "normalized mean": Arm(always(co.normalized_mean)),
        "cautious Adam": mean._replace(around=co.cautious),
        f"mean, {longer:g} x steps": mean._replace(length=longer),
    }


def always(
    make: Callable[..., Any], *args: Any, **options: Any
) -> Callable[[int], Any]:
    """The same rule for any number of rows."""
    return lambda rows: make(*args, **options)


def grouped(loss: Callable[..., jax.Array], num_rows: int, size: int) -> Any:
    """``rows`` of a problem whose batch of so many examples makes so many rows."""
    return co.per_example_value_and_grad(loss, group_size=size // num_rows)


def drawn(size: int) -> Any:
    """``batch`` of a problem: so many different examples of (N, ...) leaves."""

    def batch(train: Tree, key: jax.Array, step: jax.Array) -> tuple[Tree, None]:
        count = jax.tree.leaves(train)[0].shape[0]
        chosen = jax.random.permutation(jax.random.fold_in(key, step), count)[:size]
        return jax.tree.map(lambda x: x[chosen], train), None

    return batch


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of labels that are right."""
    return (logits.argmax(-1) == labels).astype(jnp.float32).mean()


NOTHING: Setting = MappingProxyType({})
