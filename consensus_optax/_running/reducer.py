"""The face that optax sees: a rule as an Aggregator."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from optax.experimental import aggregating

from consensus_optax import _check
from consensus_optax._rows.stack import (
    Stack,
    as_stack,
    check_like,
    present_weights,
    unknown,
    without_nans,
)
from consensus_optax._rows.trees import arrays_of, floating_leaves
from consensus_optax._rules.distances import num_present
from consensus_optax._rules.kinds import WORDS, Roster, Rule
from consensus_optax._running.checked import check_rule
from consensus_optax._running.explicit import on_any_mesh
from consensus_optax._running.memory import Memory
from consensus_optax._running.run import Outcome, init_rule, run
from consensus_optax._running.source import Seen
from consensus_optax._typing import Array, Count, Flag, Number, Threshold, Tree


class ReducerState(NamedTuple):
    """State of every reducer; its shapes do not depend on the number of rows.

    Attributes:
      step: () int32, updates made so far.
      consensus_ready: () bool, False where nothing was agreed on and the update is
        zero. (``ready`` is what optax's ``accumulate_avg_updates`` says, and
        ``aggregating.process`` looks for one such field alone.)
      num_present: () int32, rows that counted.
      num_nonfinite: () int32, rows excluded for an inf or a nan, or for a weight that
        is none: negative, not finite or above 1e16. Of a rule that clips also those
        whose squared norm is no number of the dtype of decisions.
      num_accepted: () int32, rows that the update is made of: of a weighting those with
        a positive weight (in any leaf), of other rules all that counted, and none if
        nothing was agreed on.
      consensus_ratio: () float32, share of coordinates that move. Of folds and columns
        those whose update is not zero. A weighting moves all coordinates of a leaf or
        none, so it is 1, or 0 where nothing was agreed on; where every leaf decides
        for itself, the share of coordinates in those that move.
      steps_without_consensus: () int32, for how many steps in a row, this one included,
        that share has been below 1 %.
      rule_state: the rule's own state.
    """

    step: Count
    consensus_ready: Flag
    num_present: Count
    num_nonfinite: Count
    num_accepted: Count
    consensus_ratio: Number
    steps_without_consensus: Count
    rule_state: Any

    @property
    def ready(self) -> Array:
        """``consensus_ready``, for whoever has the state itself."""
        return self.consensus_ready


class Aggregator(aggregating.Aggregator):  # optax's name, which may still move
    """A pair (init, update), as of optax, that prints as the call that made it.

    Attributes:
      text: that call.
    """

    text: str = "reducer(...)"

    def __repr__(self) -> str:
        """The call that made it."""
        return self.text


class Reducer(Aggregator):
    """An ``optax.experimental.aggregating.Aggregator`` that remembers its rule.

    A pair (init, update) like any other; engines read ``rule``, chains need not.

    Attributes:
      rule: the pure mathematics, for engines that obtain rows in other ways.
      sensitivity: by how much one row more moves the update at the most, in Euclidean
        norm, a number or a function of the step; None where nothing bounds it.
    """

    rule: Rule
    sensitivity: Threshold | None = None


def reducer(rule: Rule) -> Reducer:
    r"""Makes an optax aggregator of a rule: rows (B, \*shape) in, one update out.

    Guarantees, for every rule:
      - rows with a non-finite entry in any leaf count as absent, and are counted;
      - a row of weight 0 is the same as no row;
      - sums, inner products and votes are in float32 at least (float64 with float64
        parameters), the update has the parameters' dtypes;
      - nothing agreed on: the update is exactly zero and ``consensus_ready`` is False.

    Args:
      rule: a :class:`Fold`, :class:`Columns` or :class:`Weighting`.

    Returns:
      A :class:`Reducer`, first (or after example transformations) in ``optax.chain``.
      ``update(rows, state, params, *, weights=None, **extra)``: ``params`` is needed;
      ``weights`` (B,) says which rows are there and what they count; other keyword
      arguments are passed to the rule.

    Raises:
      ValueError: a field of the rule is not what it must be; in ``update``, when
        traced: a leaf is not (B,) + its parameter's shape, ``state`` or ``params`` is
        missing,
        ``weights`` is not (B,), or holds what is no weight and is not traced, or a
        keyword is a misspelt one of ours.

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
    check_rule("rule", rule)

    def init(params: Tree) -> ReducerState:
        zero = lambda dtype: jnp.zeros((), dtype)
        return ReducerState(
            step=zero(jnp.int32),
            consensus_ready=zero(jnp.bool_),
            num_present=zero(jnp.int32),
            num_nonfinite=zero(jnp.int32),
            num_accepted=zero(jnp.int32),
            consensus_ratio=zero(jnp.float32),
            steps_without_consensus=zero(jnp.int32),
            rule_state=init_rule(rule, arrays_of(params)),
        )

    def update(
        updates: Tree,
        state: Any = None,
        params: Tree | None = None,
        *,
        weights: Array | None = None,
        **extra: Any,
    ) -> tuple[Tree, ReducerState]:
        _check.state(state, "update(rows, state, params)")
        _check.known_words(extra, WORDS)
        stack = as_stack(unknown(updates), params)
        if not stack.leaves:  # say, one label of optax.partition without parameters
            count = jnp.asarray(optax.safe_increment(state.step))
            return stack.rebuild([]), state._replace(step=count)
        extra = with_checked_target(extra, params)
        update, state = on_any_mesh(step, stack, weights, state, extra)
        return stack.rebuild(update), state

    def step(
        stack: Stack, weights: Array | None, state: Any, extra: dict[str, Any]
    ) -> tuple[list[Array], ReducerState]:
        weights, num_nonfinite = present_weights(stack, weights)
        stack = without_nans(stack, weights)
        roster = Roster(weights, state.step, extra, like=stack.like)
        seen = Seen(roster, num_nonfinite)
        outcome, source = run(rule, Memory(stack.leaves, seen), state.rule_state)
        return finished(stack, outcome, source.seen, state)

    # optax names the first argument per_elt_updates; every caller passes it by position
    face = Reducer(init, update)  # pyrefly: ignore[bad-argument-type]
    face.rule, face.text = rule, f"reducer({type(rule).__name__}(...))"
    return face


def with_checked_target(extra: dict[str, Any], params: Tree) -> dict[str, Any]:
    """Keywords of ``update``, of which ``target`` has the parameters' shapes.

    Its floating leaves alone are kept, in order.
    """
    if extra.get("target") is None:
        return extra
    target = arrays_of(extra["target"])
    check_like(target, arrays_of(params), "`target`")
    return {**extra, "target": floating_leaves(target)}


def finished(
    stack: Stack, outcome: Outcome, seen: Seen, before: ReducerState
) -> tuple[list[Array], ReducerState]:
    """The update's floating leaves and the state after a step.

    An update that overflows in a parameter's narrower dtype is none.
    """
    roster, ready, update = seen.roster, outcome.ready, outcome.update
    ratio, accepted = outcome.ratio, outcome.accepted
    reach = lambda dtype: jnp.finfo(dtype).maxexp
    cast = [
        leaf.astype(param.dtype)
        for leaf, param in zip(update, stack.params, strict=True)
        if reach(param.dtype) < reach(stack.dtype)
    ]
    if cast:
        num_bad = sum(jnp.sum(~jnp.isfinite(leaf), dtype=jnp.int32) for leaf in cast)
        fits = roster.coordinates.total(num_bad) == 0
        ready &= fits
        update = [jnp.where(fits, leaf, 0) for leaf in update]
        ratio, accepted = jnp.where(fits, ratio, 0), accepted & fits
    waited = jnp.asarray(optax.safe_increment(before.steps_without_consensus))
    state = ReducerState(
        step=jnp.asarray(optax.safe_increment(roster.step)),
        consensus_ready=ready,
        num_present=num_present(roster.present) - outcome.num_lost,
        num_nonfinite=seen.num_nonfinite + outcome.num_lost,
        num_accepted=jnp.sum(accepted, dtype=jnp.int32),
        consensus_ratio=ratio,
        steps_without_consensus=jnp.where(ratio < _HARDLY_ANY, waited, 0),
        rule_state=outcome.state,
    )
    return update, state


_HARDLY_ANY = 0.01  # of the coordinates: what moves so few does not train


def rule_of(name: str, given: Any) -> Rule:
    """The rule of an argument that must be a reducer of this library."""
    if not isinstance(given, Reducer):
        raise ValueError(
            f"`{name}` must be a reducer of this library (not an `optax.chain`, whose "
            "parts cannot be told apart: `co.chain` of row transformations and a "
            f"reducer is one); got {type(given).__name__}"
        )
    return given.rule
