"""Merged statistics of the batches so far: all that a fold needs of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax._rows.explicit import Explicit, freed, spec_of, zeros_as
from consensus_optax._rows.stack import Stack, present_weights, without_nans
from consensus_optax._rows.statistics import merge_leaves
from consensus_optax._rules.kinds import Fold, Roster
from consensus_optax._running.memory import Memory
from consensus_optax._running.reducer import ReducerState, finished
from consensus_optax._running.run import resolved
from consensus_optax._running.source import Seen
from consensus_optax._typing import Array, Count, Flag


class Merged(NamedTuple):
    """Statistics of some rows.

    Attributes:
      statistics: one list per statistic with what there is for every leaf.
      started: () bool, whether any row has counted.
      num_nonfinite: () int32, rows excluded so far.
    """

    statistics: list[list[Any]]
    started: Flag
    num_nonfinite: Count


def nothing(rule: Fold, stack: Stack) -> Merged:
    """The statistics of no row, of the shapes that those of any have."""
    weights = jnp.ones(stack.num_rows, stack.dtype)
    look = lambda leaves: _observed(rule, stack._replace(leaves=leaves), weights)[0]
    plain = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    shapes = jax.eval_shape(look, jax.tree.map(plain, stack.leaves))
    return zeros_as(shapes)


def with_batch(
    rule: Fold, old: Merged, stack: Stack, weights: Array, first: Array
) -> tuple[Merged, Array]:
    """The statistics with those of one batch more, and the weights that count in it.

    Of the ``first`` batch nothing stands before it.
    """

    def merge(leaves: Any, weights: Array, old: Merged, first: Array) -> Any:
        new, weights = _observed(rule, stack._replace(leaves=leaves), weights)
        started = old.started & ~first
        both = merge_leaves(
            rule.statistics, old.statistics, new.statistics, started, new.started
        )
        num_bad = jnp.where(first, 0, old.num_nonfinite) + new.num_nonfinite
        return Merged(both, started | new.started, num_bad), weights

    specs = Explicit.of(old).specs, spec_of(weights)
    return freed(merge, (stack.leaves, weights, old, first), specs)


def reduced(
    rule: Fold,
    stack: Stack,
    merged: Merged,
    weights: Array,
    state: ReducerState,
    extra: dict[str, Any],
) -> tuple[list[Array], ReducerState]:
    """The update and the state after it, as of all rows at once."""

    def resolve(
        merged: Merged, weights: Array, state: Any, extra: dict[str, Any]
    ) -> tuple[list[Array], ReducerState]:
        roster = Roster(weights, state.step, extra)
        outcome = resolved(rule, merged.statistics, roster, state.rule_state)
        return finished(stack, outcome, Seen(roster, merged.num_nonfinite), state)

    specs = Explicit.of(stack.params).specs, Explicit.of(state).specs
    return freed(resolve, (merged, weights, state, extra), specs)


def _observed(rule: Fold, stack: Stack, weights: Array) -> tuple[Merged, Array]:
    """The statistics of one batch, and the weights of its rows that count."""
    weights, num_bad = present_weights(stack, weights)
    stack = without_nans(stack, weights)
    seen = Seen(Roster(weights, jnp.zeros((), jnp.int32), {}), num_bad)
    # `matters` says what matters of all rows, which are not here
    observed, _ = Memory(stack.leaves, seen).statistics(rule._replace(matters=None))
    return Merged(observed, jnp.any(weights > 0), num_bad), weights
