"""Clients that differ, and some that lie: which rule keeps a federated model alive?

Digits and clothes, shared out evenly or so that each client has few classes
(Dirichlet), and Shakespeare, whose roles are clients. A row is what some local steps of
a client moved. Four of the sixteen clients of a round are the attackers; robust rules
are told so. The rate is chosen where nobody attacks: an attack is not announced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import consensus_optax as co
from benchmarks.quality import _data, _networks, _texts
from benchmarks.quality._question import (
    Arm,
    Problem,
    Question,
    Setting,
    Size,
    always,
    baselines,
)
from consensus_optax import attacks, tasks, training

CLIENTS, SAMPLED, LIARS, STEPS = 40, 16, 4, 5
INNER = {"inner product": 2.0, "reversed": 4.0}  # from 3 on it turns the mean round
ATTACKS = ("nobody", "labels turned", "a little is enough", *INNER)


class Clients(NamedTuple):
    """Who has which examples, and what the attackers do."""

    examples: Any  # (N, ...)
    indices: Any  # (CLIENTS, longest)
    counts: Any  # (CLIENTS,)
    attack: Any  # () of ATTACKS


class World(NamedTuple):
    """Data that can be shared out, and what learns it.

    Attributes:
      network: makes it.
      rate: of the clients' own steps.
      batch: examples of each of these.
      classes: how many labels there are.
      shared_out: by split and seed: train, valid, test, and whose the first are.
    """

    network: Callable[[], _networks.Classifier]
    rate: float
    batch: int
    classes: Callable[[], int]
    shared_out: Callable[[str, int], tuple[Any, Any, Any, tasks.Split]]


def problem_in(
    world: World,
) -> Callable[[Setting, int, Sequence[int], bool], Problem]:
    """One row for each client of a round."""

    def problem(
        setting: Setting, rows: int, seeds: Sequence[int], tuning: bool
    ) -> Problem:
        del rows, tuning
        network = world.network()
        local = training.local_updates(network.loss, optax.sgd(world.rate))

        def rows_of(params: Any, batch: Any) -> tuple[jax.Array, Any]:
            examples, attack = batch
            losses, stack = local(params, examples)
            honest = jax.tree.map(lambda x: x[:-LIARS], stack)
            own = lambda: jax.tree.map(lambda x: x[-LIARS:], stack)
            little = lambda: attacks.a_little_is_enough(
                honest, LIARS, num_deviations=1.5
            )
            inner = [
                lambda epsilon=epsilon: attacks.inner_product_manipulation(
                    honest, LIARS, epsilon=epsilon
                )
                for epsilon in INNER.values()
            ]
            told = jax.lax.switch(attack, [own, own, little, *inner])
            return losses, attacks.join(honest, told)

        def scores(
            params: Any, train: Any, valid: Any, test: Any
        ) -> dict[str, jax.Array]:
            del train
            return {
                "valid_accuracy": network.accuracy(params, valid),
                "test_accuracy": network.accuracy(params, test),
            }

        return Problem(
            init=network.init,
            rows=rows_of,
            batch=drawn(world.batch, world.classes()),
            scores=scores,
            data=_data.stacked([shared_out(world, setting, seed) for seed in seeds]),
            units=np.arange(len(seeds)),
        )

    return problem


def shared_out(world: World, setting: Setting, seed: int) -> tuple[Clients, Any, Any]:
    """Clients, and the data kept from them."""
    train, valid, test, split = world.shared_out(setting["split"], seed)
    longest = len(train.labels) // 4  # of all splits, so that they share a program
    more = longest - split.indices.shape[1]
    indices = np.pad(split.indices, ((0, 0), (0, more)))
    attack = np.int32(ATTACKS.index(setting["attack"]))
    return Clients(train, indices, split.counts, attack), valid, test


def drawn(size: int, classes: int) -> Callable[..., Any]:
    """Batches of the local steps of a round, (SAMPLED, STEPS, size, ...)."""

    def batch(clients: Clients, key: jax.Array, step: jax.Array) -> Any:
        choosing, drawing = jax.random.split(jax.random.fold_in(key, step))
        chosen = jax.random.permutation(choosing, CLIENTS)[:SAMPLED]
        counts = clients.counts[chosen]
        most = jnp.maximum(counts, 1)[:, None]
        places = jax.random.randint(drawing, (SAMPLED, STEPS * size), 0, most)
        which = jnp.take_along_axis(clients.indices[chosen], places, 1)
        which = which.reshape(SAMPLED, STEPS, size)
        examples = jax.tree.map(lambda x: x[which], clients.examples)
        lies = (clients.attack == ATTACKS.index("labels turned")) & (
            jnp.arange(SAMPLED) >= SAMPLED - LIARS
        )
        turned = attacks.label_flip(examples.labels, classes)
        lies = jnp.expand_dims(lies, range(1, turned.ndim))
        labels = jnp.where(lies, turned, examples.labels)
        weights = (counts > 0).astype(jnp.float32)
        return (examples._replace(labels=labels), clients.attack), weights

    return batch


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


def question(name: str, world: World, splits: Sequence[str], size: Size) -> Question:
    """The same of other data."""
    return Question(
        name=name,
        problem=problem_in(world),
        settings=tuple(setting(s, attack) for s in splits for attack in ATTACKS),
        arms=arms,
        rows=(SAMPLED,),
        size=size,
        shown={"test_accuracy": "Test accuracy, %"},
        pictured=("test_accuracy",),
        column="split, attack",
        data_alone=("split", "attack", "split, attack"),
        tuned_at=lambda setting_: setting(setting_["split"], "nobody"),
    )


DIRICHLET = {"even": None, "Dirichlet 1": 1.0, "Dirichlet 0.1": 0.1}


def pictures(
    split: Callable[[int], tuple[Any, Any, Any]],
) -> Callable[[str, int], tuple[Any, Any, Any, tasks.Split]]:
    """Labelled pictures, by a Dirichlet law of each class."""

    def shared_out(name: str, seed: int) -> tuple[Any, Any, Any, tasks.Split]:
        train, valid, test = split(seed)
        labels, concentration = train.labels, DIRICHLET[name]
        if concentration is None:
            shares = tasks.even_split(len(labels), CLIENTS, seed=seed)
        else:
            shares = tasks.dirichlet_split(labels, CLIENTS, concentration, seed=seed)
        return train, valid, test, shares

    return shared_out


def plays(name: str, seed: int) -> tuple[Any, Any, Any, tasks.Split]:
    """Windows of text: each client has those of a role, or of all."""
    train, valid, test = _texts.windows(seed, WINDOW, CLIENTS)
    of_each = train.labels.shape[1]
    shares = tasks.even_split(CLIENTS * of_each, CLIENTS, seed=seed)
    if name == "roles":
        own = np.arange(CLIENTS * of_each, dtype=np.int32).reshape(CLIENTS, of_each)
        shares = shares._replace(indices=own)
    return jax.tree.map(np.concatenate, train), valid, test, shares


WINDOW = 16  # characters
CLOTHES = "Fashion-MNIST"
TEN = lambda: _data.CLASSES
SIZE = Size(
    steps=60,
    seeds=10,
    tuning_seeds=2,
    rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    evaluations=3,
)


DIGITS = World(lambda: _networks.classifier(32), 0.1, 16, TEN, pictures(_data.split))
TEXT = World(
    lambda: _texts.perceptron(8, 8, 32),
    1.0,
    8,
    lambda: len(_texts.roles().vocabulary),
    plays,
)

CLOTHING = World(
    lambda: _networks.classifier(32, _data.SETS[CLOTHES][-1]),
    0.1,
    16,
    TEN,
    pictures(functools.partial(_data.split, data=CLOTHES)),
)

QUESTIONS = (
    question("clients", DIGITS, tuple(DIRICHLET), SIZE),
    question("clients_fashion", CLOTHING, ("Dirichlet 1", "Dirichlet 0.1"), SIZE),
    question(
        "clients_text",
        TEXT,
        ("mixed", "roles"),
        SIZE._replace(seeds=8, rates=(1e-2, 3e-2, 1e-1, 3e-1)),
    ),
)
