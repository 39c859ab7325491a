"""Federated rounds on Shakespeare's roles, with some of the clients dishonest."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

import consensus_optax as co
from consensus_optax import attacks, tasks, training

CONTEXT, PREDICTED = 6, 32  # characters before the first prediction, and predictions
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


class Problem(NamedTuple):
    """Functions of the parameters, and the data."""

    roles: tasks.Roles
    params: Callable[[int], Any]  # by seed
    loss: Callable[[Any, Any], jax.Array]
    draw: Callable[..., Any]
    scores: Callable[[Any], tuple[jax.Array, jax.Array]]


def problem(roles: tasks.Roles, setting: Setting) -> Problem:
    """The model, what its clients minimize, and how it does on the kept text."""
    make = lambda seed: training.CharacterMLP(
        len(roles.vocabulary),
        context=CONTEXT,
        features=8,
        width=setting.width,
        rngs=nnx.Rngs(seed),
    )
    apply, _ = training.functional(make(0))

    def loss(params: Any, batch: Any) -> jax.Array:
        ids, targets = batch
        return tasks.example_losses(apply(params, ids), targets).mean()

    def draw(key: jax.Array, text: Any, count: Any, num_windows: int) -> Any:
        length = CONTEXT + PREDICTED
        ids = tasks.draw_windows(
            key, text, count, num_windows=num_windows, length=length
        )
        return ids, ids[:, CONTEXT:]

    keys = jax.random.split(jax.random.key(0), len(roles.names))
    of_all = jax.vmap(functools.partial(draw, num_windows=setting.test_windows))
    test = of_all(keys, *map(jnp.asarray, roles.test))  # (roles, test_windows, ...)
    ids, targets = (x.reshape(-1, x.shape[-1]) for x in test)

    @jax.jit
    def scores(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = apply(params, ids)
        right = jnp.argmax(logits, -1) == targets
        return jnp.mean(right), tasks.example_losses(logits, targets).mean()

    return Problem(
        roles,
        lambda seed: training.functional(make(seed))[1],
        loss,
        functools.partial(draw, num_windows=setting.num_windows),
        scores,
    )


def trainer(work: Problem, rule: Any, setting: Setting) -> Callable[..., Any]:
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
            flipped = attacks.label_flip(last, len(work.roles.vocabulary))
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
        arguments = jnp.float32(rate), chosen, jax.random.key(seed), *work.roles.train
        losses = np.zeros(1)
        for _ in range(programs):
            fit, losses = jitted(fit, *arguments)
        return fit.params, float(np.mean(losses[-setting.rounds // 2 :]))

    return train
