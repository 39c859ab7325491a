"""Which engine runs which kind of rule when rows come a few at a time."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax._rows import verbs
from consensus_optax._rows.verbs import AnyLeaf
from consensus_optax._rules.kinds import Among, Fold, Roster, Rule, Weighting
from consensus_optax._running.run import (
    AmongState,
    MemoryState,
    Outcome,
    add_previous,
    run,
    settle,
    weigh,
)
from consensus_optax._typing import Array
from consensus_optax.engines.microbatches.batches import Block, Microbatches, Seen
from consensus_optax.engines.microbatches.folds import stream
from consensus_optax.engines.microbatches.weightings import first_pass, second_pass


def run_microbatched(
    rule: Rule, microbatches: Microbatches, state: Any, step: Array
) -> tuple[Outcome, Seen]:
    """Runs a rule on rows that are computed a microbatch at a time."""

    def rows_of(weights: Array, value: Any) -> Roster:
        return Roster(weights, step, {"values": microbatches.losses(value)})

    match rule:
        case Fold():
            passed = stream(rule, microbatches)
            rows = rows_of(passed.weights, passed.value)
            outcome = settle(rule.resolve(passed.merged, rows), rows)
        case Weighting():
            previous = state.previous if rule.remembers else None
            passed = first_pass(rule, microbatches, previous)
            rows = rows_of(passed.weights, passed.value)
            rule_state = state.rule_state if rule.remembers else state
            weights, new = weigh(rule, passed.products, rows, rule_state)
            count = rows.weights.shape[0]
            update = second_pass(rule, weights[..., :count], microbatches)
            if previous is not None:
                update = add_previous(update, weights, previous)
                new = MemoryState(update, new)
            outcome = Outcome(update, jnp.any(weights != 0), new)
        case Among():
            passed = first_pass(rule.selector, microbatches, None)
            rows = rows_of(passed.weights, passed.value)
            chosen, selector = weigh(
                rule.selector, passed.products, rows, state.selector_state
            )
            survivors = jnp.where(chosen > 0, rows.weights, 0)
            remaining = microbatches._replace(weights=survivors)
            outcome, _ = run_microbatched(rule.rule, remaining, state.rule_state, step)
            outcome = outcome._replace(state=AmongState(selector, outcome.state))
        case _:
            return _run_held(rule, microbatches, state, rows_of)
    return outcome, Seen(rows, passed.num_nonfinite, passed.value)


def _run_held(
    rule: Rule, microbatches: Microbatches, state: Any, rows_of: Any
) -> tuple[Outcome, Seen]:
    """What looks at all rows of a coordinate holds the stack, activations of m rows."""

    def step(carry: None, block: Block) -> tuple[None, Any]:
        dtype = block.stack.dtype
        leaves = [verbs.as_array(leaf, dtype) for leaf in block.stack.leaves]
        return carry, ((leaves, block.weights, block.value), block.num_nonfinite)

    _, (held, num_nonfinite) = microbatches.scan(step, None)
    arrays, weights, value = microbatches.in_order(held)
    leaves: list[AnyLeaf] = [*arrays]
    rows = rows_of(weights, value)
    outcome = run(rule, leaves, rows, state)
    return outcome, Seen(rows, num_nonfinite.sum(), value)
