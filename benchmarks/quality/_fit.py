"""One arm on every replicate and at every rate, in one program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.quality._question import Arm, Problem, Size, Tree
from consensus_optax import training

WATCHED = ("consensus_ratio", "accepted", "consensus_ready")


def fit(
    problem: Problem,
    arm: Arm,
    rows: int,
    rates: tuple[float, ...],
    size: Size,
    decay: float = 0.0,
) -> dict[str, np.ndarray]:
    """Trains, and looks now and then.

    Args:
      problem: with R replicates.
      arm: the way to train.
      rows: how many there are in a step.
      rates: H learning rates.
      size: how many steps and evaluations, and replicates at once.
      decay: of the weights, decoupled.

    Returns:
      By name what ``problem.scores`` and ``problem.look`` say and what the rule's state
      tells, each (H, R, E).
    """
    steps = round(arm.length * size.steps / size.evaluations)
    numbers = jnp.arange(size.evaluations * steps).reshape(size.evaluations, steps)

    def train(rate: jax.Array, key: jax.Array, data: Any) -> dict[str, jax.Array]:
        begin, order = jax.random.split(key)
        params = problem.init(begin)
        optimizer = arm.optimizer(rows, rate, decay)

        def step(carry: Tree, number: jax.Array) -> tuple[Tree, dict[str, jax.Array]]:
            params, state = carry
            batch, weights = problem.batch(data[0], order, number)
            losses, stack = problem.rows(params, batch)
            updates, state = optimizer.update(
                stack, state, params, weights=weights, values=losses
            )
            params = jax.tree.map(jnp.add, params, updates)
            seen = {name: training.watched(state, name) for name in WATCHED}
            seen["loss"] = training.weighted_mean(losses, weights)
            return (params, state), {k: v for k, v in seen.items() if v is not None}

        def part(carry: Tree, numbers: jax.Array) -> tuple[Tree, dict[str, jax.Array]]:
            carry, seen = jax.lax.scan(step, carry, numbers)
            found = jax.tree.map(lambda x: x.mean(0), seen)
            batch, _ = problem.batch(data[0], order, numbers[-1] + 1)
            stack = problem.rows(carry[0], batch)[1]
            more = problem.look(arm.reducer(rows), carry[0], batch, stack)
            return carry, {**found, **problem.scores(carry[0], *data), **more}

        return jax.lax.scan(part, (params, optimizer.init(params)), numbers)[1]

    at_all_rates = jax.vmap(train, in_axes=(0, None, None))
    replicates = len(problem.units)

    @jax.jit
    def program(rates: jax.Array, keys: jax.Array, data: Any) -> dict[str, jax.Array]:
        of_one = lambda given: at_all_rates(rates, *given)
        return jax.lax.map(of_one, (keys, data), batch_size=size.at_once or replicates)

    # A replicate's key hangs on its own number alone: all arms start from the same
    # weights and see the same batches, so that differences between them are paired.
    keys = jax.vmap(jax.random.key)(jnp.arange(replicates))
    found = program(jnp.asarray(rates), keys, problem.data)  # (R, H, E)
    return {k: np.moveaxis(np.asarray(v), 0, 1) for k, v in found.items()}
