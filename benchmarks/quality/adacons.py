"""Adaptive Consensus: what do subspace weights change, and when do they say the mean?

Workers of one batch each (2411.03742), and the method's open questions: how small a
batch of a worker may be before the weights say nothing, clipping before and after, and
weights in a trust region.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import consensus_optax as co
from benchmarks.quality import _data, _networks, _texts, _trust_region
from benchmarks.quality._question import (
    Arm,
    Problem,
    Question,
    Setting,
    Size,
    always,
    baselines,
    drawn,
    grouped,
)
from benchmarks.quality.label_noise import coefficients

RADIUS, LENGTH, ROLES = 0.5, 32, 40
CLIPPED_AT = ((8, 1), (8, 16))  # workers and batches that clipping is asked of


class World(NamedTuple):
    """A network and its data."""

    network: Callable[[], _networks.Classifier]
    split: Callable[[int], tuple[Any, Any, Any]]  # by seed


def problem_in(
    world: World,
) -> Callable[[Setting, int, Sequence[int], bool], Problem]:
    """One row for each worker."""

    def problem(
        setting: Setting, rows: int, seeds: Sequence[int], tuning: bool
    ) -> Problem:
        del rows, tuning
        workers, each = int(setting["workers"]), int(setting["batch"])
        network = world.network()

        def scores(
            params: Any, train: Any, valid: Any, test: Any
        ) -> dict[str, jax.Array]:
            as_many = len(jax.tree.leaves(test)[0])
            return {
                "train_loss": network.loss(
                    params, jax.tree.map(lambda x: x[:as_many], train)
                ),
                "valid_loss": network.loss(params, valid),
                "test_accuracy": network.accuracy(params, test),
            }

        return Problem(
            init=network.init,
            rows=grouped(network.loss, workers, workers * each),
            batch=drawn(workers * each),
            scores=scores,
            data=_data.stacked([world.split(seed) for seed in seeds]),
            units=np.arange(len(seeds)),
            look=look,
        )

    return problem


def look(
    rule: Any, params: Any, batch: Any, losses: jax.Array, stack: Any
) -> dict[str, jax.Array]:
    """How far the update is from two means, and how unlike the weights of rows are.

    Weights are told of the rows as they are, which are alike in the mean, and votes of
    rows made equally long, which are alike in the normalized mean.
    """
    del batch
    of = lambda make: make.update(stack, make.init(params), params)[0]
    ours = of(rule)
    # Of a batch without a gradient all updates are the same, 0.
    share = lambda part, whole, none: jnp.where(
        whole > 0, part / jnp.where(whole > 0, whole, 1), none
    )
    length = optax.tree.norm
    cosine = lambda other: share(
        optax.tree.vdot(ours, other), length(ours) * length(other), 1
    )
    weights = coefficients(rule, params, losses, stack)
    votes = weights * jnp.sqrt(co.diagnostics.gramian(stack).diagonal())
    spread = lambda x: share(x.std(), jnp.abs(x.mean()), 0)
    return {
        "cosine_to_mean": cosine(of(co.mean())),
        "cosine_to_normalized": cosine(of(co.normalized_mean())),
        "weight_spread": spread(weights),
        "vote_spread": spread(votes),
    }


def arms(setting: Setting) -> Mapping[str, Arm]:
    """With and without momentum, a trust region, and clipping."""
    workers = int(setting["workers"])
    rules = {
        "mean": always(co.mean),
        "AdaCons": always(co.subspace_weighting),
        "AdaCons, momentum": always(
            co.subspace_weighting, momentum=0.99, num_rows=workers
        ),
    }
    after = lambda adam: co.skip_if_empty(
        optax.chain(optax.clip_by_global_norm(1.0), adam)
    )
    before = (lambda: co.clip_examples(1.0),)
    clipped = {
        f"{name}, {where} clipped": arm
        for name, rule in rules.items()
        for where, arm in {
            "rows": Arm(rule, ahead=before),
            "update": Arm(rule, around=after),
        }.items()
    }
    return {
        **baselines(),
        "AdaCons": Arm(rules["AdaCons"]),
        "AdaCons, momentum": Arm(rules["AdaCons, momentum"]),
        "AdaCons near the mean": Arm(always(_trust_region.near_the_mean, RADIUS)),
        "trust region": Arm(always(_trust_region.trust_region, RADIUS)),
        **(clipped if (workers, setting["batch"]) in CLIPPED_AT else {}),
    }


def question(
    name: str,
    world: World,
    pairs: Sequence[tuple[int, int]],
    size: Size,
    large: bool = False,
) -> Question:
    """The same of another network.

    Args:
      name: of the results.
      world: the network and its data.
      pairs: workers, and examples of each.
      size: how much of everything.
      large: whether it is asked by name only.
    """
    return Question(
        name=name,
        problem=problem_in(world),
        settings=tuple(
            {"workers": w, "batch": b, "workers, batch": f"{w}, {b}"} for w, b in pairs
        ),
        arms=arms,
        rows=(0,),  # one for each worker
        size=size,
        shown={
            "test_accuracy": "Test accuracy, %",
            "train_loss": "Training loss",
            "cosine_to_mean": "Cosine of the update with the mean, %",
            "cosine_to_normalized": "Cosine with the normalized mean, %",
            "weight_spread": "Spread of the rows' weights (deviation / mean)",
            "vote_spread": "Spread of the votes (weights times lengths)",
        },
        pictured=("test_accuracy", "cosine_to_mean"),
        column="workers, batch",
        metric="valid_loss",
        higher_is_better=False,
        asked_by_name=large,
    )


SIZE = Size(
    steps=200,
    seeds=10,
    tuning_seeds=2,
    rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    evaluations=5,
    looks=4,
)
DIGITS = World(lambda: _networks.classifier(64), _data.split)
PICTURES = World(lambda: _networks.convolutional(16, 2), _data.split)


def text(seed: int) -> tuple[Any, Any, Any]:
    """What all roles say, (N, length)."""
    train, valid, test = _texts.windows(seed, LENGTH, ROLES)
    return jax.tree.map(np.concatenate, train), valid, test


TEXT = World(lambda: _texts.transformer(LENGTH, 32), text)

FEWER = SIZE._replace(steps=150, seeds=8, rates=(1e-3, 3e-3, 1e-2, 3e-2))
# Larger batches want larger rates: of 16 examples the largest of SIZE was chosen.
LARGER = FEWER._replace(rates=(3e-3, 1e-2, 3e-2, 1e-1))

QUESTIONS = (
    question(
        "adacons",
        DIGITS,
        ((8, 1), (8, 4), (8, 16), (8, 64), (32, 1), (32, 4), (32, 16)),
        SIZE,
    ),
    question(
        "adacons_cnn", PICTURES, ((8, 1), (8, 4), (8, 16), (32, 1), (32, 4)), SIZE
    ),
    question("adacons_cnn_large", PICTURES, ((8, 64), (32, 16)), LARGER, large=True),
    question("adacons_text", TEXT, ((8, 1), (8, 4), (32, 1)), FEWER),
    question("adacons_text_large", TEXT, ((8, 16),), LARGER, large=True),
)
