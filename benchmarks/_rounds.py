"""Federated rounds on Shakespeare's roles, with some of the clients dishonest."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import consensus_optax as co
from consensus_optax import attacks, tasks, training
from consensus_optax.comparison import ClientTask, shakespeare_clients

LOCAL_RATE, MOMENTUM = 1.0, 0.9

# The published z of `a_little_is_enough` is 0.05 for 3 of 30, which changes nothing, as
# does inner-product manipulation with less than 9; pseudo-gradients are about 0.01.
ON_ROWS: dict[str, Callable[..., Any]] = {
    "sign flip": functools.partial(attacks.sign_flip, own=True),
    "inner product": functools.partial(
        attacks.inner_product_manipulation, epsilon=10.0
    ),
    "a little": functools.partial(attacks.a_little_is_enough, num_deviations=1.5),
    "Gaussian": functools.partial(attacks.gaussian, scale=1.0),
    "mimic": attacks.mimic,
    "infinite": attacks.infinite,
}
ATTACKS = ("none", "label flip", *ON_ROWS)


class Setting(NamedTuple):
    """How large everything is; smoke runs make it tiny."""

    num_clients: int = 30
    num_byzantine: int = 3
    num_steps: int = 5
    num_windows: int = 8
    width: int = 64
    rounds: int = 25  # in one program
    programs: int = 4  # one after the other
    seeds: int = 3
    test_windows: int = 4  # of every role

    def rules(self) -> dict[str, co.Reducer]:
        """The contestants, each told how many clients are dishonest."""
        f, n = self.num_byzantine, self.num_clients
        mixing = co.nearest_neighbor_mixing(f)
        return {
            "mean": co.mean(),
            "median": co.median(),
            "trimmed mean": co.trimmed_mean(f),
            "Krum": co.krum(f),
            "Multi-Krum": co.krum(f, n - f),
            "geometric median": co.geometric_median(),
            "NNM, geometric median": co.after(mixing, co.geometric_median()),
            "sign vote": co.sign_vote(),
        }


SMOKE = Setting(num_clients=6, num_byzantine=1, num_steps=1, num_windows=1, width=4)
SMOKE = SMOKE._replace(rounds=2, programs=1, seeds=2, test_windows=1)


def problem(roles: tasks.Roles, setting: Setting) -> ClientTask:
    """The model, what its clients minimize, and how it does on the kept text."""
    return shakespeare_clients(
        roles,
        width=setting.width,
        num_windows=setting.num_windows,
        test_windows=setting.test_windows,
    )


def trainer(work: ClientTask, rule: Any, setting: Setting) -> Callable[..., Any]:
    """One program for every rate, attack and seed of a rule: some rounds of it."""
    f = setting.num_byzantine

    def run(
        fit: Any, rate: Any, attack: Any, key: Any, texts: Any, counts: Any
    ) -> tuple[Any, jax.Array]:
        sampling, poison = jax.random.split(key)
        optimizer = optax.chain(rule, optax.sgd(rate, momentum=MOMENTUM))
        batch_at = training.client_batches(
            sampling,
            texts,
            counts,
            work.draw,
            num_sampled=setting.num_clients,
            num_steps=setting.num_steps,
        )

        def poisoned(number: jax.Array) -> tuple[Any, jax.Array]:
            (ids, targets), weights = batch_at(number)
            last = targets[-f:]
            flipped = attacks.label_flip(last, work.num_classes)
            last = jnp.where(attack == ATTACKS.index("label flip"), flipped, last)
            return (ids, targets.at[-f:].set(last)), weights

        def replace(rows: Any, number: jax.Array) -> Any:
            honest = jax.tree.map(lambda leaf: leaf[:-f], rows)
            last = jax.tree.map(lambda leaf: leaf[-f:], rows)
            own = lambda honest, last, key: last
            others = [
                lambda honest, last, key, make=make: make(honest, f, key)
                for make in ON_ROWS.values()
            ]
            key = jax.random.fold_in(poison, number)
            bad = lax.switch(attack, [own, own, *others], honest, last, key)
            return attacks.join(honest, bad)

        step = training.federated_round(
            work.loss, optimizer, optax.sgd(LOCAL_RATE), attack=replace
        )
        fit, metrics = training.train(step, fit, poisoned, setting.rounds)
        return fit, metrics["loss"]

    jitted = jax.jit(run)

    def train(rate: float, attack: str, seed: int, programs: int) -> tuple[Any, float]:
        """Parameters after that many programs, training loss of the last half one."""
        fit = training.start(
            work.params(seed), optax.chain(rule, optax.sgd(rate, momentum=MOMENTUM))
        )
        chosen = jnp.asarray(ATTACKS.index(attack))
        arguments = (
            jnp.float32(rate),
            chosen,
            jax.random.key(seed),
            work.data,
            work.counts,
        )
        losses = np.zeros(1)
        for _ in range(programs):
            fit, losses = jitted(fit, *arguments)
        return fit.params, float(np.mean(losses[-setting.rounds // 2 :]))

    return train
