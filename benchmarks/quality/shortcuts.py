"""Shortcuts: a feature that is right in every environment, and one that is not.

Spirals of the paper of the AND-mask (2009.00329), as there and smaller: two arms, and
sixteen more inputs that tell the label by a sign of their own in each environment; in
the test that sign is random. Rows are environments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import consensus_optax as co
from benchmarks.quality import _networks
from benchmarks.quality._question import (
    Arm,
    Problem,
    Question,
    Setting,
    Size,
    always,
    baselines,
)

SIGNATURE = 16


class Spirals(NamedTuple):
    """How hard the feature is that holds everywhere, and what learns it."""

    revolutions: float
    examples: int  # of each environment
    batch: int  # of these in a step
    width: int  # of three hidden layers


def problem_of(
    spirals: Spirals,
) -> Callable[[Setting, int, Sequence[int], bool], Problem]:
    """One row for each environment."""

    def logits(params: list[Any], x: jax.Array) -> jax.Array:
        return _networks.mlp(params, x, jax.nn.leaky_relu)[..., 0]

    def loss(params: list[Any], batch: Any) -> jax.Array:
        x, y = batch
        return optax.sigmoid_binary_cross_entropy(logits(params, x), y).mean()

    def scores(params: list[Any], *parts: Any) -> dict[str, jax.Array]:
        right = lambda part: ((logits(params, part[0]) > 0) == part[1]).mean()
        names = ("train_accuracy", "valid_accuracy", "test_accuracy")
        return dict(zip(names, map(right, parts), strict=True))

    def batch(train: Any, key: jax.Array, step: jax.Array) -> tuple[Any, None]:
        """All, or a part of each environment; every one once in an epoch."""
        parts = spirals.examples // spirals.batch
        if parts == 1:
            return train, None
        mixed = jax.random.fold_in(key, step // parts)
        order = jax.random.permutation(mixed, spirals.examples)
        chosen = order.reshape(parts, spirals.batch)[step % parts]
        return jax.tree.map(lambda x: x[:, chosen], train), None

    def problem(
        setting: Setting, rows: int, seeds: Sequence[int], tuning: bool
    ) -> Problem:
        del rows, tuning
        made = [_data(spirals, int(setting["environments"]), seed) for seed in seeds]
        hidden = 3 * [spirals.width]
        return Problem(
            init=_networks.init_mlp([2 + SIGNATURE, *hidden, 1]),
            rows=co.per_example_value_and_grad(loss),  # an example is an environment
            batch=batch,
            scores=scores,
            data=jax.tree.map(lambda *parts: np.stack(parts), *made),
            units=np.arange(len(seeds)),
        )

    return problem


def _data(spirals: Spirals, environments: int, seed: int) -> tuple[Any, Any, Any]:
    """Train (E, N, 18); valid and test (N, 18) with a random signature.

    The rate is chosen by examples without the shortcut, other than those of the test:
    by training accuracy every method would be told to take the shortcut.
    """
    random = np.random.default_rng(seed)
    signatures = random.normal(size=(environments, SIGNATURE))
    make = lambda count, signature: _examples(
        random, spirals.revolutions, count, signature
    )
    train = [make(spirals.examples, signature) for signature in signatures]
    train = tuple(np.stack(parts) for parts in zip(*train, strict=True))
    return train, make(1024, None), make(2048, None)


def _examples(
    random: Any, revolutions: float, count: int, signature: Any
) -> tuple[np.ndarray, np.ndarray]:
    y = random.integers(0, 2, count)
    radius = random.uniform(0.08, 1, count)
    angle = 2 * np.pi * revolutions * radius + np.pi * y
    radius = radius + random.uniform(-0.02, 0.02, count)
    spiral = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    spiral = spiral / np.sqrt((spiral**2).mean(0))
    sign = 2 * y - 1
    if signature is None:
        shortcut = random.normal(size=(count, SIGNATURE))
    else:
        shortcut = sign[:, None] * signature
    x = np.concatenate([spiral, shortcut], -1).astype(np.float32)
    return x, y.astype(np.float32)


def arms(setting: Setting) -> Mapping[str, Arm]:
    """Of rules that look at signs, and one that does not."""
    del setting
    votes = {
        "AND-mask": Arm(always(co.sign_consensus, magnitude="mean")),
        "AND-mask, quorum 0.8": Arm(always(co.sign_consensus, 0.8, "mean")),
        "geometric mean": Arm(always(co.sign_consensus, magnitude="geometric")),
        "minmod": Arm(always(co.sign_consensus)),
        "GradDrop": Arm(always(co.graddrop, 0.0, jax.random.key(0))),
        "median": Arm(always(co.median)),
    }
    return {**baselines(), **votes}


def question(
    name: str, spirals: Spirals, environments: Sequence[int], size: Size, large: bool
) -> Question:
    """The same of other spirals.

    Args:
      name: of the results.
      spirals: what is learned, and by what.
      environments: numbers of them.
      size: how much of everything.
      large: whether it is asked by name only.
    """
    return Question(
        name=name,
        problem=problem_of(spirals),
        settings=tuple(
            {"environments": count, "weight_decay": 1e-3} for count in environments
        ),
        arms=arms,
        rows=(0,),  # as many as there are environments
        size=size,
        shown={
            "test_accuracy": "Test accuracy, %",
            "train_accuracy": "Training accuracy, %",
            "consensus_ratio": "Consensus ratio at the end, %",
        },
        pictured=("test_accuracy", "train_accuracy"),
        column="environments",
        asked_by_name=large,
    )


# The size of the first was chosen in trials, on seeds 0 and 1: no such seed answers.
SMALL = Size(
    steps=600,
    seeds=12,
    tuning_seeds=2,
    rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    evaluations=6,
    first_seed=100,
)
PUBLISHED = Size(
    steps=600,  # 150 epochs of four
    seeds=8,
    tuning_seeds=2,
    rates=(1e-3, 3e-3, 1e-2, 3e-2),
    evaluations=6,
    falls_after=0.75,
)

# Half of the arms choose the largest of those rates: whether they want larger ones.
WIDE = SMALL._replace(rates=(*SMALL.rates, 1.0, 3.0))

EASY = Spirals(0.5, 256, 256, 32)

QUESTIONS = (
    question("shortcuts", EASY, (2, 4, 8, 16, 32), SMALL, large=False),
    question("shortcuts_rates", EASY, (2, 4, 8, 16, 32), WIDE, large=True),
    question(
        "shortcuts_published", Spirals(3, 1024, 256, 256), (16,), PUBLISHED, large=True
    ),
)
