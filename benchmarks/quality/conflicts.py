"""Conflicting tasks: one trunk for a digit's class, its picture, and its turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import consensus_optax as co
from benchmarks.quality import _data, _networks
from benchmarks.quality._question import (
    Arm,
    Problem,
    Question,
    Setting,
    Size,
    accuracy,
    always,
    baselines,
    drawn,
)

BATCH, TURNS = 64, 4
HEADS = {"class": _data.CLASSES, "picture": _data.PIXELS, "turn": TURNS}


def problem(setting: Setting, rows: int, seeds: Sequence[int], tuning: bool) -> Problem:
    """Rows are the gradients of the three losses."""
    del rows, tuning
    width = int(setting["trunk"])
    made = [tuple(map(_turned, _data.split(seed), range(3))) for seed in seeds]

    def init(key: jax.Array) -> dict[str, Any]:
        trunk, *heads = jax.random.split(key, 1 + len(HEADS))
        out = {"trunk": _networks.init_mlp([_data.PIXELS, width])(trunk)}
        for (name, size), k in zip(HEADS.items(), heads, strict=True):
            out[name] = _networks.init_mlp([width, size])(k)
        return out

    def outputs(params: dict[str, Any], x: jax.Array) -> dict[str, jax.Array]:
        shared = jax.nn.relu(_networks.mlp(params["trunk"], x))
        return {name: _networks.mlp(params[name], shared) for name in HEADS}

    def losses(params: dict[str, Any], batch: Any) -> dict[str, jax.Array]:
        x, labels, turns = batch
        said = outputs(params, x)
        entropy = optax.softmax_cross_entropy_with_integer_labels
        return {
            "class": entropy(said["class"], labels).mean(),
            "picture": 10 * jnp.mean((said["picture"] - x) ** 2),  # of a like size
            "turn": entropy(said["turn"], turns).mean(),
        }

    def rows_of(params: dict[str, Any], batch: Any) -> tuple[jax.Array, Any]:
        values, stack = co.task_value_and_grad(losses)(params, batch)
        return jnp.stack(jax.tree.leaves(values)), stack

    def scores(params: Any, train: Any, valid: Any, test: Any) -> dict[str, jax.Array]:
        del train
        said, found = outputs(params, test[0]), losses(params, test)
        return {
            "class_accuracy": accuracy(said["class"], test[1]),
            "turn_accuracy": accuracy(said["turn"], test[2]),
            "picture_loss": found["picture"],
            "valid_loss": sum(losses(params, valid).values()),
            "worst_loss": jnp.stack([*found.values()]).max(),
        }

    return Problem(
        init=init,
        rows=rows_of,
        batch=drawn(BATCH),
        scores=scores,
        data=_data.stacked(made),
        units=np.arange(len(seeds)),
    )


def _turned(
    part: _data.Pictures, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures, each turned by a multiple of a right angle."""
    turns = np.random.default_rng(seed).integers(0, TURNS, len(part.truth))
    square = part.pixels.reshape(-1, 8, 8)
    turned = [np.rot90(x, k) for x, k in zip(square, turns, strict=True)]
    return (
        np.stack(turned).reshape(part.pixels.shape),
        part.truth,
        turns.astype(np.int32),
    )


def arms(setting: Setting) -> Mapping[str, Arm]:
    """The rules for several losses."""
    del setting
    rules: dict[str, Callable[[], Any]] = {
        "UPGrad": co.upgrad,
        "MGDA": co.mgda,
        "CAGrad": co.cagrad,
        "PCGrad": lambda: co.pcgrad(jax.random.key(0)),
        "IMTL-G": co.imtl_g,
        "Nash-MTL": co.nash_mtl,
        "sign consensus": co.sign_consensus,
    }
    return {**baselines(), **{name: Arm(always(make)) for name, make in rules.items()}}


QUESTION = Question(
    name="conflicts",
    problem=problem,
    settings=tuple({"trunk": width} for width in (4, 32)),
    arms=arms,
    rows=(len(HEADS),),
    size=Size(
        steps=500, seeds=10, tuning_seeds=2, rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    ),
    shown={
        "class_accuracy": "Class, test accuracy, %",
        "turn_accuracy": "Turn, test accuracy, %",
        "picture_loss": "Picture, 10 x squared error",
        "worst_loss": "The worst of the three losses",
    },
    pictured=("class_accuracy", "picture_loss"),
    column="trunk",
    metric="valid_loss",
    higher_is_better=False,
)
