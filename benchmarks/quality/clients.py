"""Clients that differ, and some that lie: which rule keeps a federated model alive?

Digits, shared out evenly or so that each client has few classes (Dirichlet). A row is
what five local steps of a client moved. Four of the sixteen clients of a round are the
attackers; robust rules are told so. The rate is chosen where nobody attacks: an attack
is not announced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
)
from consensus_optax import attacks, tasks, training

CLIENTS, SAMPLED, LIARS = 40, 16, 4
STEPS, BATCH, LOCAL_RATE, WIDTH = 5, 16, 0.1, 32
LONGEST = 128  # examples of a client: of all splits, so that they share a program
SPLITS = {
    "even": lambda labels, seed: tasks.even_split(len(labels), CLIENTS, seed=seed),
    "few classes": lambda labels, seed: tasks.dirichlet_split(
        labels, CLIENTS, 0.3, seed=seed
    ),
}
ATTACKS = ("nobody", "labels turned", "a little is enough", "inner product")


class Clients(NamedTuple):
    """Who has which examples, and what the attackers do."""

    examples: _data.Pictures  # (N, ...)
    indices: Any  # (CLIENTS, LONGEST)
    counts: Any  # (CLIENTS,)
    attack: Any  # () of ATTACKS


def problem(setting: Setting, rows: int, seeds: Sequence[int], tuning: bool) -> Problem:
    """One row for each client of a round."""
    del rows, tuning
    network = _networks.classifier(WIDTH)
    local = training.local_updates(network.loss, optax.sgd(LOCAL_RATE))

    def rows_of(params: Any, batch: Any) -> tuple[jax.Array, Any]:
        examples, attack = batch
        losses, stack = local(params, examples)
        honest = jax.tree.map(lambda x: x[:-LIARS], stack)
        own = lambda: jax.tree.map(lambda x: x[-LIARS:], stack)
        little = lambda: attacks.a_little_is_enough(honest, LIARS, num_deviations=1.5)
        inner = lambda: attacks.inner_product_manipulation(honest, LIARS, epsilon=2.0)
        told = jax.lax.switch(attack, [own, own, little, inner])
        return losses, attacks.join(honest, told)

    def scores(params: Any, train: Any, valid: Any, test: Any) -> dict[str, jax.Array]:
        del train
        said = lambda part: accuracy(network.logits(params, part.pixels), part.truth)
        return {"valid_accuracy": said(valid), "test_accuracy": said(test)}

    return Problem(
        init=network.init,
        rows=rows_of,
        batch=drawn,
        scores=scores,
        data=_data.stacked([shared_out(setting, seed) for seed in seeds]),
        units=np.arange(len(seeds)),
    )


def shared_out(setting: Setting, seed: int) -> tuple[Clients, Any, Any]:
    """Clients, and the data kept from them."""
    train, valid, test = _data.split(seed)
    split = SPLITS[setting["split"]](train.labels, seed)
    more = LONGEST - split.indices.shape[1]
    indices = np.pad(split.indices, ((0, 0), (0, more)))
    attack = np.int32(ATTACKS.index(setting["attack"]))
    return Clients(train, indices, split.counts, attack), valid, test


def drawn(clients: Clients, key: jax.Array, step: jax.Array) -> Any:
    """Batches of the local steps of a round, (SAMPLED, STEPS, BATCH, ...)."""
    choosing, drawing = jax.random.split(jax.random.fold_in(key, step))
    chosen = jax.random.permutation(choosing, CLIENTS)[:SAMPLED]
    counts = clients.counts[chosen]
    most = jnp.maximum(counts, 1)[:, None]
    places = jax.random.randint(drawing, (SAMPLED, STEPS * BATCH), 0, most)
    which = jnp.take_along_axis(clients.indices[chosen], places, 1)
    which = which.reshape(SAMPLED, STEPS, BATCH)
    examples = jax.tree.map(lambda x: x[which], clients.examples)
    lies = (clients.attack == ATTACKS.index("labels turned")) & (
        jnp.arange(SAMPLED) >= SAMPLED - LIARS
    )
    turned = attacks.label_flip(examples.labels, _data.CLASSES)
    labels = jnp.where(lies[:, None, None], turned, examples.labels)
    weights = (counts > 0).astype(jnp.float32)
    return (examples._replace(labels=labels), clients.attack), weights


def arms(setting: Setting) -> Mapping[str, Arm]:
    """Robust rules, told how many lie, and the vote of signs."""
    del setting
    near = lambda: co.nearest_neighbor_mixing(LIARS)
    return {
        **baselines(),
        "median": Arm(always(co.median)),
        "trimmed mean": Arm(always(co.trimmed_mean, LIARS)),
        "Multi-Krum": Arm(always(co.krum, LIARS, SAMPLED - LIARS)),
        "geometric median": Arm(always(co.geometric_median)),
        "NNM, trimmed mean": Arm(lambda rows: co.after(near(), co.trimmed_mean(LIARS))),
        "sign consensus 0.7": Arm(always(co.sign_consensus, 0.7)),
    }


def setting(split: str, attack: str) -> Setting:
    """With what tables call it."""
    return {"split": split, "attack": attack, "split, attack": f"{split}, {attack}"}


QUESTION = Question(
    name="clients",
    problem=problem,
    settings=tuple(setting(split, attack) for split in SPLITS for attack in ATTACKS),
    arms=arms,
    rows=(SAMPLED,),
    size=Size(
        steps=60, seeds=6, tuning_seeds=2, rates=(1e-3, 3e-3, 1e-2), evaluations=4
    ),
    shown={"test_accuracy": "Test accuracy, %"},
    pictured=("test_accuracy",),
    column="split, attack",
    data_alone=("split", "attack", "split, attack"),
    tuned_at=lambda setting_: setting(setting_["split"], "nobody"),
)
