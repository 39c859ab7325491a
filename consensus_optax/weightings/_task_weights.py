"""Weights on the simplex that are kept and moved at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.kinds import Roster
from consensus_optax._rules.solvers import ratio
from consensus_optax._typing import Array, Gramian, Tree


class TaskWeightsState(NamedTuple):
    """What is kept of one step for the next.

    Attributes:
      coefficients: (num_tasks,) >= 0, with sum 1; uniform at first.
    """

    coefficients: Array


def uniform(num_tasks: int) -> Callable[[Tree, Any], TaskWeightsState]:
    """The state before the first step, of parameters and a dtype."""

    def init(params: Tree, dtype: Any) -> TaskWeightsState:
        del params
        return TaskWeightsState(jnp.full(num_tasks, 1 / num_tasks, dtype))

    return init


def among_present(state: TaskWeightsState, present: Array) -> tuple[Array, Array]:
    """Weights of the tasks present, scaled to sum 1, (K,), and what they summed to.

    Uniform where all that there was is with absent ones.
    """
    kept = jnp.where(present, state.coefficients, 0)
    mass = kept.sum()
    even = ratio(present.astype(kept.dtype), present.sum().astype(kept.dtype))
    return jnp.where(mass > 0, ratio(kept, mass), even), mass


def moved(
    state: TaskWeightsState, present: Array, mass: Array, weights: Array
) -> TaskWeightsState:
    """The state with new weights for those present; absent ones keep theirs."""
    return TaskWeightsState(jnp.where(present, mass * weights, state.coefficients))


def on_simplex(point: Array, present: Array) -> Array:
    """The nearest point of the simplex over the present entries, (K,)."""
    size = point.shape[0]
    # A number that is taken off all entries changes nothing but their rounding.
    point = jnp.where(
        present, point - jnp.max(point, where=present, initial=-jnp.inf), 0
    )
    ranked = -jnp.sort(jnp.where(present, -point, jnp.inf))  # largest first
    counted = jnp.isfinite(ranked)
    ranked = jnp.where(counted, ranked, 0)
    ranks = jnp.arange(1, size + 1).astype(point.dtype)
    level = (jnp.cumsum(ranked) - 1) / ranks
    last = jnp.sum(counted & (ranked > level), dtype=jnp.int32) - 1
    return jnp.where(present, jnp.maximum(point - level[last], 0), 0)


def stepped(weights: Array, slope: Array, rate: Array, present: Array) -> Array:
    """Weights, (K,), moved against a slope and back to the simplex over those present.

    A number that is taken off all slopes changes nothing; so that the least of them is
    0, no step, however long, takes all weights to an infinity.
    """
    least = jnp.min(slope, where=present, initial=jnp.inf)
    return on_simplex(weights - rate * jnp.where(present, slope - least, 0), present)


def of_batches(
    gramian: Gramian, roster: Roster, num_tasks: int, num_batches: int
) -> tuple[Array, Array]:
    """Products of rows of the first batch with those of the second, and who is there.

    Args:
      gramian: (B, B) of the rows of batch after batch, each in the order of the tasks.
      roster: of all these rows.
      num_tasks: K.
      num_batches: B / K.

    Returns:
      (K, K), and (K,) bool: tasks whose rows are there in all batches.
    """
    _check.rows_expected(num_tasks * num_batches, roster.weights.shape[0])
    present = roster.present.reshape(num_batches, num_tasks).all(0)
    cross = gramian[:num_tasks, num_tasks : 2 * num_tasks]
    return jnp.where(present[:, None] & present[None, :], cross, 0), present


def to_batches(weights: Array, num_batches: int) -> Array:
    """Weights (B,) from those of the tasks: the mean over two batches, or the third."""
    if num_batches == 2:
        return jnp.tile(weights / 2, 2)
    return jnp.concatenate([jnp.zeros(2 * weights.shape[0], weights.dtype), weights])
