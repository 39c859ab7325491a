"""The face that optax sees: a rule as an Aggregator."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from optax.experimental import aggregating

from consensus_optax import _check
from consensus_optax._rows.stack import as_stack, present_weights, without_nans
from consensus_optax._rows.trees import arrays_of
from consensus_optax._rules.kinds import WORDS, Roster, Rule
from consensus_optax._running.run import Outcome, init_rule, run
from consensus_optax._typing import Array, Tree


class ReducerState(NamedTuple):
    """State of every reducer; its shapes do not depend on the number of rows.

    Attributes:
      step: () int32, updates made so far.
      ready: () bool, False where nothing was agreed on and the update is zero.
      num_present: () int32, rows that counted.
      num_nonfinite: () int32, rows excluded for an inf or a nan, or for a weight that
        is none: negative, not finite or above 1e16.
      rule_state: the rule's own state.
    """

    step: Array
    ready: Array
    num_present: Array
    num_nonfinite: Array
    rule_state: Any


Aggregator = aggregating.Aggregator  # optax's name, which may still move


class Reducer(Aggregator):
    """An ``optax.experimental.aggregating.Aggregator`` that remembers its rule.

    A pair (init, update) like any other; engines read ``rule``, chains need not.

    Attributes:
      rule: the pure mathematics, for engines that obtain rows in other ways.
    """

    rule: Rule


def reducer(rule: Rule) -> Reducer:
    r"""Makes an optax aggregator of a rule: rows (B, \*shape) in, one update out.

    Guarantees, for every rule:
      - rows with a non-finite entry in any leaf count as absent, and are counted;
      - a row of weight 0 is the same as no row;
      - sums, inner products and votes are in float32 at least (float64 with float64
        parameters), the update has the parameters' dtypes;
      - nothing agreed on: the update is exactly zero and ``ready`` is False.

    Args:
      rule: a :class:`Fold`, :class:`Columns`, :class:`Weighting` or :class:`Among`.

    Returns:
      A :class:`Reducer`, first (or after example transformations) in ``optax.chain``.
      ``update(rows, state, params, *, weights=None, **extra)``: ``params`` is needed;
      ``weights`` (B,) says which rows are there and what they count; other keyword
      arguments are passed to the rule.

    Raises:
      ValueError: in ``update``, when traced: a leaf is not (B,) + its parameter's
        shape, ``params`` is missing, ``weights`` is not (B,), or holds what is no
        weight and is not traced, or a keyword is a misspelt one of ours.

    Cost: that of the rule; the test for non-finite entries reads the rows once.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> mean = co.Weighting(lambda _, roster, state: (roster.shares, state),
      ...                     reads="nothing")
      >>> optimizer = optax.chain(co.reducer(mean), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> rows = jnp.array([[1., 2.], [3., 4.]])
      >>> updates, _ = optimizer.update(rows, optimizer.init(params), params)
      >>> updates.tolist()
      [-2.0, -3.0]
    """

    def init(params: Tree) -> ReducerState:
        zero = lambda dtype: jnp.zeros((), dtype)
        return ReducerState(
            step=zero(jnp.int32),
            ready=zero(jnp.bool_),
            num_present=zero(jnp.int32),
            num_nonfinite=zero(jnp.int32),
            rule_state=init_rule(rule, arrays_of(params)),
        )

    def update(
        updates: Tree,
        state: Any,
        params: Tree | None = None,
        *,
        weights: Array | None = None,
        **extra: Any,
    ) -> tuple[Tree, ReducerState]:
        _check.known_words(extra, WORDS)
        stack = as_stack(updates, params)
        if not stack.leaves:  # say, one label of optax.partition without parameters
            step = jnp.asarray(optax.safe_increment(state.step))
            return stack.rebuild([]), state._replace(step=step)
        weights, num_nonfinite = present_weights(stack, weights)
        stack = without_nans(stack, weights)
        roster = Roster(weights, state.step, extra)
        outcome = run(rule, stack.leaves, roster, state.rule_state)
        return stack.rebuild(outcome.update), next_state(outcome, roster, num_nonfinite)

    # optax names the first argument per_elt_updates; every caller passes it by position
    face = Reducer(init, update)  # pyrefly: ignore[bad-argument-type]
    face.rule = rule
    return face


def next_state(outcome: Outcome, roster: Roster, num_nonfinite: Array) -> ReducerState:
    """The state after a step, whichever engine made it."""
    return ReducerState(
        step=jnp.asarray(optax.safe_increment(roster.step)),
        ready=outcome.ready,
        num_present=jnp.sum(roster.present, dtype=jnp.int32),
        num_nonfinite=num_nonfinite,
        rule_state=outcome.state,
    )


def rule_of(name: str, given: Any) -> Rule:
    """The rule of an argument that must be a reducer of this library."""
    if not isinstance(given, Reducer):
        raise ValueError(
            f"`{name}` must be a reducer of this library (not a chain, whose parts "
            f"cannot be told apart); got {type(given).__name__}"
        )
    return given.rule
