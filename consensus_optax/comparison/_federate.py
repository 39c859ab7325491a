"""Federated rounds of many contestants: a rule, an attack, a compressor each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import consensus_optax as co
from consensus_optax import attacks, training
from consensus_optax.comparison._client_tasks import ClientTask
from consensus_optax.comparison._named_attacks import NamedAttack, on_data, on_rows

MOMENTUM = 0.9
Progress = Callable[[str, int], None]


class Contestant(NamedTuple):
    """What is compared: what the server does, and what is done to it.

    Attributes:
      rule: of the server.
      attack: what dishonest clients do.
      compressor: of what clients send; None: numbers as they are.
      error_feedback: whether a client adds what that loses to its next message.
    """

    rule: co.Reducer
    attack: NamedAttack = NamedAttack()
    compressor: Any = None
    error_feedback: bool = False


class Federation(NamedTuple):
    """What federated training leaves behind.

    Attributes:
      task: that was learned.
      settings: how.
      rounds: (E,) where it was looked at.
      curves: by contestant and metric, (E, 1, seeds).
      num_bytes: by contestant, what a client sends in a round.
      failed: contestants that cannot work, and why.
      interrupted: whether it was.
    """

    task: ClientTask
    settings: dict[str, Any]
    rounds: np.ndarray
    curves: dict[str, dict[str, np.ndarray]]
    num_bytes: dict[str, int]
    failed: dict[str, str]
    interrupted: bool


def federate(
    task: ClientTask,
    contestants: Mapping[str, Contestant],
    *,
    rounds: int = 40,
    seeds: int = 3,
    num_sampled: int = 20,
    num_byzantine: int = 0,
    num_steps: int = 5,
    local_rate: float = 0.3,
    rate: float = 1.0,
    num_evaluations: int = 10,
    progress: Progress = lambda name, rounds: None,
) -> Federation:
    """Trains one model per seed with each contestant, from the same weights and draws.

    The last of the clients drawn for a round are the attackers; all clients that are
    there weigh the same, since counts that clients tell are one more thing to lie in.
    Contestants that differ in their attack alone share one compiled program.

    Args:
      task: the clients.
      contestants: by the name to report them under.
      rounds: how many.
      seeds: independent starts, side by side in one program.
      num_sampled: clients of a round.
      num_byzantine: attackers among them.
      num_steps: local steps of SGD.
      local_rate: its learning rate.
      rate: of the server's SGD with momentum 0.9; the same for all.
      num_evaluations: how often to evaluate.
      progress: called with a contestant's name and the rounds it has just done; 0 mean
        that it is about to be compiled.

    Returns:
      The curves. After ``KeyboardInterrupt`` those of who had finished. A contestant
      that raises ``ValueError`` (it needs more rows, say) is left out, with its
      message.

    Examples:
      >>> from consensus_optax import comparison, tasks
      >>> split = lambda labels: tasks.even_split(len(labels), 4)
      >>> task = comparison.picture_clients(tasks.digits(), split)
      >>> small = {"rounds": 1, "seeds": 1, "num_sampled": 2, "num_steps": 1}
      >>> result = federate(task, {"mean": Contestant(co.mean())}, **small)
      >>> result.curves["mean"]["test_accuracy"].shape
      (2, 1, 1)
    """
    chunk = max(1, rounds // num_evaluations)
    lengths = [min(chunk, rounds - done) for done in range(0, rounds, chunk)]
    make = functools.partial(
        _program,
        task,
        num_sampled=num_sampled,
        num_byzantine=num_byzantine,
        num_steps=num_steps,
        local_rate=local_rate,
        rate=rate,
    )
    faced = _faced(task, contestants)
    programs: dict[Any, tuple[Any, Callable[..., Any]]] = {}
    curves: dict[str, dict[str, np.ndarray]] = {}
    failed: dict[str, str] = {}
    num_bytes: dict[str, int] = {}
    interrupted = False
    try:
        start = jax.tree.map(lambda *x: jnp.stack(x), *map(task.params, range(seeds)))
        evaluate = jax.jit(jax.vmap(task.scores))
        for name, contestant in contestants.items():
            progress(name, 0)
            try:
                server = _server_of(contestant)
                if contestant.attack not in faced[server]:
                    raise ValueError("a back door needs pictures")
                if server not in programs:
                    programs[server] = make(contestant, faced[server])
                optimizer, run = programs[server]
                which = faced[server].index(contestant.attack)
                begin = functools.partial(training.start, optimizer=optimizer)
                fit = jax.vmap(begin)(start)
                found = [evaluate(fit.params)]
                for length in lengths:
                    fit, loss = run(fit, length, jnp.arange(seeds), which)
                    found.append(evaluate(fit.params) | {"train_loss": loss})
                    progress(name, length)
            except ValueError as error:
                failed[name] = str(error)
                continue
            found[0] |= {"train_loss": found[1]["train_loss"]}
            curves[name] = jax.tree.map(lambda *x: np.stack(x)[:, None], *found)
            num_bytes[name] = _bytes_of(contestant, task.params(0))
    except KeyboardInterrupt:
        interrupted = True
    settings = {
        "rounds": rounds,
        "seeds": seeds,
        "num_clients": len(task.counts),
        "num_sampled": num_sampled,
        "num_byzantine": num_byzantine,
        "num_steps": num_steps,
        "local_rate": local_rate,
        "rate": rate,
        "momentum": MOMENTUM,
    }
    places = np.cumsum([0, *lengths])
    return Federation(task, settings, places, curves, num_bytes, failed, interrupted)


def _server_of(contestant: Contestant) -> Any:
    """What those have in common that differ in their attack alone."""
    rule, _, code, feedback = contestant
    return id(rule), id(code), feedback


def _faced(
    task: ClientTask, contestants: Mapping[str, Contestant]
) -> dict[Any, list[NamedAttack]]:
    """By server the attacks that its contestants face, as far as the task has them."""
    faced: dict[Any, list[NamedAttack]] = {}
    for contestant in contestants.values():
        found = faced.setdefault(_server_of(contestant), [])
        possible = contestant.attack.data != "patch" or task.pictures
        if possible and contestant.attack not in found:
            found.append(contestant.attack)
    return faced


def _program(
    task: ClientTask,
    contestant: Contestant,
    faced: Sequence[NamedAttack],
    *,
    num_sampled: int,
    num_byzantine: int,
    num_steps: int,
    local_rate: float,
    rate: float,
) -> tuple[Any, Callable[..., Any]]:
    """A contestant's optimizer, and what trains with it under one of some attacks.

    The latter takes (fits, rounds, seeds, which attack) to (fits, mean loss).
    """
    rule, _, code, feedback = contestant
    parts = [rule, optax.sgd(rate, momentum=MOMENTUM)]
    if code is not None and feedback:
        parts.insert(0, co.error_feedback(code, len(task.counts)))
    elif code is not None:
        parts.insert(0, co.compressed(code))
    optimizer = optax.chain(*parts)

    def run(
        fit: Any, seed: jax.Array, which: Any, data: Any, counts: Any, length: int
    ) -> Any:
        sampling, poison, absence = jax.random.split(jax.random.key(seed), 3)
        batch_at = training.client_batches(
            *(sampling, data, counts, task.draw),
            num_sampled=num_sampled,
            num_steps=num_steps,
            as_cohort=True,
        )

        def spoiled(attack: NamedAttack) -> Callable[..., Any]:
            def of(batch: Any, weights: Any, key: Any) -> Any:
                batch = on_data(attack, batch, num_byzantine, task.num_classes)
                if attack.absent and num_byzantine:
                    weights = attacks.silence(
                        weights, num_byzantine, key, probability=attack.absent
                    )
                return batch, weights

            return of

        def poisoned(number: jax.Array) -> tuple[Any, jax.Array]:
            cohort, weights = batch_at(number)
            # The last attack: who has no data, and so does not count, comes first.
            order = jnp.argsort(weights > 0, stable=True)
            cohort, weights = jax.tree.map(lambda leaf: leaf[order], (cohort, weights))
            weights = (weights > 0).astype(jnp.float32)
            given = cohort.batches, weights, jax.random.fold_in(absence, number)
            batches, weights = lax.switch(which, [*map(spoiled, faced)], *given)
            return cohort._replace(batches=batches), weights

        def replaced(rows: Any, step: jax.Array) -> Any:
            made = [on_rows(x, rule, num_byzantine, poison) for x in faced]
            own = lambda rows, step: rows
            return lax.switch(which, [make or own for make in made], rows, step)

        local = optax.sgd(local_rate)
        step = training.federated_round(task.loss, optimizer, local, attack=replaced)
        fit, metrics = training.train(step, fit, poisoned, length)
        return fit, metrics["loss"].mean()

    @functools.partial(jax.jit, static_argnums=1)
    def of_seeds(fits: Any, length: int, seeds: jax.Array, which: Any) -> Any:
        data = jax.tree.map(jnp.asarray, task.data)
        one = functools.partial(run, data=data, counts=task.counts, length=length)
        return jax.vmap(one, (0, 0, None))(fits, seeds, which)

    return optimizer, of_seeds


def _bytes_of(contestant: Contestant, params: Any) -> int:
    """What one client sends: numbers of 4 bytes, or what a compressor makes of them."""
    if contestant.compressor is not None:
        return int(contestant.compressor.num_bytes(params))
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
