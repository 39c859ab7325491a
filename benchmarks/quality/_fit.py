"""One arm on every replicate and at every rate: one program, run for each.

A batch of replicates, by ``vmap``, was slower on CPUs: half as fast on ARC and with
convolutions, whose filters become groups, and nowhere faster by more than a tenth.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable
from importlib.metadata import version
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
    name: Hashable = None,
) -> dict[str, np.ndarray]:
    """Trains, and looks now and then.

    Args:
      problem: with R replicates.
      arm: the way to train.
      rows: how many there are in a step.
      rates: H learning rates.
      size: how many steps and evaluations.
      decay: of the weights, decoupled.
      name: of the program, the same where only data, rates and decay differ; None: it
        serves this once.

    Returns:
      By name what ``problem.scores`` and ``problem.look`` say and what the rule's state
      tells, each (H, R, E).
    """
    steps = round(arm.length * size.steps / size.evaluations)
    numbers = jnp.arange(size.evaluations * steps).reshape(size.evaluations, steps)
    falls_at = round(size.falls_after * size.evaluations * steps)

    def scheduled(rate: jax.Array) -> Any:
        if size.falls_after == 1:
            return rate
        return lambda count: rate * jnp.where(count < falls_at, 1.0, 0.1)

    def train(
        rate: jax.Array, decay: jax.Array, key: jax.Array, data: Any
    ) -> dict[str, jax.Array]:
        begin, order = jax.random.split(key)
        params = problem.init(begin)
        optimizer = arm.optimizer(rows, scheduled(rate), decay)

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

            def look(number: jax.Array) -> dict[str, jax.Array]:
                batch, _ = problem.batch(data[0], order, number)
                losses, stack = problem.rows(carry[0], batch)
                return problem.look(arm.reducer(rows), carry[0], batch, losses, stack)

            more = jax.lax.map(look, numbers[-1] + 1 + jnp.arange(size.looks))
            more = jax.tree.map(lambda x: jnp.nanmean(x, 0), more)
            return carry, {**found, **problem.scores(carry[0], *data), **more}

        return jax.lax.scan(part, (params, optimizer.init(params)), numbers)[1]

    # A replicate's key hangs on its own number alone: all arms start from the same
    # weights and see the same batches, so that differences between them are paired.
    program = _program(name, train)
    data = jax.device_get(problem.data)  # cut by NumPy, without a program
    of_replicate = [
        (jax.random.key(place), jax.tree.map(operator.itemgetter(place), data))
        for place in range(len(problem.units))
    ]
    found = [program(rate, decay, *of_one) for rate in rates for of_one in of_replicate]
    shape = (len(rates), len(problem.units), -1)
    return jax.tree.map(lambda *x: np.stack(x).reshape(shape), *found)


def _program(name: Hashable, function: Any) -> Any:
    """The one of that name, compiled when it is first called."""
    if name is None or name not in _PROGRAMS:
        while len(_PROGRAMS) >= _MOST_PROGRAMS:
            del _PROGRAMS[next(iter(_PROGRAMS))]  # the oldest
        quickly = _QUICKLY if jax.default_backend() == "cpu" else {}
        _PROGRAMS[name] = jax.jit(function, compiler_options=quickly)
    return _PROGRAMS[name]


# Compiling takes as long as training at these sizes, so LLVM tries less, and where
# jaxlib has two ways to emit loops it takes the quicker one.
_QUICKLY: dict[str, int | bool] = {"xla_backend_optimization_level": 1}
if version("jaxlib").startswith("0.10."):
    _QUICKLY["xla_cpu_use_fusion_emitters"] = False

# More than settings that share programs have arms and numbers of rows. Each takes some
# hundred mapped pieces of memory, of which Linux gives a process 65530.
_MOST_PROGRAMS = 64
_PROGRAMS: dict[Hashable, Any] = {}
