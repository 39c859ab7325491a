"""Shortcuts: a feature that is right in every environment, and one that is not.

Spirals as in the paper of the AND-mask (2009.00329), smaller: two arms of half a
revolution where the paper has three, and sixteen more inputs that tell the label by a
sign of their own in each environment; in the test that sign is random. Rows are
environments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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

REVOLUTIONS, EXAMPLES, SIGNATURE, WIDTH = 0.5, 256, 16, 32


def problem(setting: Setting, rows: int, seeds: Sequence[int], tuning: bool) -> Problem:
    """One row for each environment, all examples in every step."""
    del rows, tuning
    made = [_data(int(setting["environments"]), seed) for seed in seeds]
    data = jax.tree.map(lambda *parts: np.stack(parts), *made)

    def logits(params: list[Any], x: jax.Array) -> jax.Array:
        return _networks.mlp(params, x, jax.nn.leaky_relu)[..., 0]

    def loss(params: list[Any], batch: Any) -> jax.Array:
        x, y = batch
        return optax.sigmoid_binary_cross_entropy(logits(params, x), y).mean()

    def scores(params: list[Any], *parts: Any) -> dict[str, jax.Array]:
        right = lambda part: ((logits(params, part[0]) > 0) == part[1]).mean()
        names = ("train_accuracy", "valid_accuracy", "test_accuracy")
        return dict(zip(names, map(right, parts), strict=True))

    return Problem(
        init=_networks.init_mlp([2 + SIGNATURE, WIDTH, WIDTH, WIDTH, 1]),
        rows=co.per_example_value_and_grad(loss),  # an example is an environment
        batch=lambda train, key, step: (train, None),
        scores=scores,
        data=data,
        units=np.arange(len(seeds)),
    )


def _data(environments: int, seed: int) -> tuple[Any, Any, Any]:
    """Train (E, N, 18); valid and test (N, 18) with a random signature.

    The rate is chosen by examples without the shortcut, other than those of the test:
    by training accuracy every method would be told to take the shortcut.
    """
    random = np.random.default_rng(seed)
    signatures = random.normal(size=(environments, SIGNATURE))
    train = [_examples(random, EXAMPLES, signature) for signature in signatures]
    train = tuple(np.stack(parts) for parts in zip(*train, strict=True))
    return train, _examples(random, 1024, None), _examples(random, 2048, None)


def _examples(random: Any, count: int, signature: Any) -> tuple[np.ndarray, np.ndarray]:
    y = random.integers(0, 2, count)
    radius = random.uniform(0.08, 1, count)
    angle = 2 * np.pi * REVOLUTIONS * radius + np.pi * y
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


QUESTION = Question(
    name="shortcuts",
    problem=problem,
    settings=tuple(
        {"environments": count, "weight_decay": 1e-3} for count in (2, 8, 16)
    ),
    arms=arms,
    rows=(0,),  # as many as there are environments
    size=Size(
        steps=600, seeds=6, tuning_seeds=2, rates=(1e-3, 3e-3, 1e-2), evaluations=6
    ),
    shown={
        "test_accuracy": "Test accuracy, %",
        "train_accuracy": "Training accuracy, %",
    },
    pictured=("test_accuracy", "train_accuracy"),
    column="environments",
)
