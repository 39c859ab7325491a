"""A rule that is a sum, over rows that nobody sees."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._rows.stack import as_stack, present_weights, without_nans
from consensus_optax._rules.kinds import (
    After,
    Columns,
    Fold,
    Noised,
    Reads,
    Roster,
    Rule,
    Scaling,
    Weighting,
)
from consensus_optax._running.checked import is_noised
from consensus_optax._running.memory import Memory
from consensus_optax._running.reducer import (
    Aggregator,
    Reducer,
    finished,
)
from consensus_optax._running.run import run
from consensus_optax._running.source import Asked, Seen
from consensus_optax._typing import Array, Count, Tree
from consensus_optax.federated._fixed_point import FixedPoint, fixed_point
from consensus_optax.federated._masking import masked, unmasked


class SecureSumState(NamedTuple):
    """State of :func:`secure_sum`.

    Attributes:
      num_clamped: () int32, entries of the last step that were beyond what their client
        may send. Known to the simulation alone.
      rule: the state of the rule.
    """

    num_clamped: Count
    rule: Any


def secure_sum(
    rule: Reducer, *, bound: float, key: Array, threshold: int | None = None
) -> Aggregator:
    r"""The rule on sums of masked messages: the server sees no row.

    .. math:: u = \mathrm{rule}\Big(\sum_i x_i\Big), \qquad
        \sum_i x_i = q^{-1}\Big(\sum_i \mathrm{masked}(q(x_i))\Big)

    For rules that are sums of what each client can make of its own row: ``mean``,
    ``clipped_sum`` and ``private_sum`` (each clips itself; the server adds the noise),
    ``constant``, ``sign_vote`` and other folds that add. A rule that compares single
    rows, as robust ones do, cannot be had: what it reads is what is hidden.

    What :func:`masked` protects and what not is said there. Besides, weights, losses
    and whatever else ``update`` is given are told in the clear; so is, with a
    :func:`consensus_optax.quantile_norm`, its count.

    Guarantees: sums in integers are exact, in whatever order; the update is the rule's
    up to the code's error, :math:`2^{-30}` of the bound for each client. A client that
    has sent and then is gone (weight 0, or an entry that is not finite) is recovered
    from: the sum is that of the others. No client's part is longer than it was, so
    sensitivities hold. Each step has masks of its own, by ``fold_in(key, step)``.
    Edge cases: fewer than ``threshold`` are there: zero, not ready; of ``private_sum``
    noise alone, as where nobody is there, or an update would tell who is. An entry
    beyond the bound times the client's share of the weights is cut off there, and
    counted, so that the sum is never beyond the bound.

    Args:
      rule: a reducer.
      bound: the largest magnitude of an entry of the sum: of rows for ``mean``; the
        number of clients times C / d for a clipped sum; the sum of weights for votes.
      key: random key.
      threshold: t, how many have to be there to the end; None for two thirds of the
        rows and one. Padding is a row: with places for more than are drawn, as of
        :func:`sample_poisson`, say how many.

    Returns:
      An aggregator, in the place of the rule. Rows are multiplied out.

    Raises:
      ValueError: the rule reads single rows; an argument is out of range.

    Cost: that of :func:`masked`.

    References: Bonawitz et al., `Practical Secure Aggregation for Federated Learning on
    User-Held Data <https://arxiv.org/abs/1611.04482>`_, 2016.

    Examples:
      >>> import consensus_optax as co
      >>> server = secure_sum(co.mean(), bound=10.0, key=jax.random.key(0))
      >>> rows, params = jnp.array([[1.5], [2.5], [8.0]]), jnp.zeros(1)
      >>> update, _ = server.update(rows, server.init(params), params)
      >>> round(float(update[0]), 6)
      4.0
    """
    if not isinstance(rule, Reducer):
        _check.fail("rule", "a reducer of this library", type(rule).__name__)
    reason = _single_rows(rule.rule)
    if reason:
        raise ValueError(
            f"`rule` must be a sum of what each client makes of its own row; got "
            f"{rule}, which {reason}. Under masks the server has the sum alone: use "
            "`mean`, `clipped_sum`, `private_sum` or a fold that adds, or let the "
            "server see the rows."
        )
    _check.static_number("bound", bound, 1e-30, 1e30)
    _check.key("key", key)
    code = fixed_point(float(bound) * _ROOM)
    if threshold is not None:
        _check.count("threshold", threshold)

    def init(params: Tree) -> SecureSumState:
        return SecureSumState(jnp.zeros((), jnp.int32), rule.init(params))

    def update(
        updates: Tree,
        state: Any = None,
        params: Tree | None = None,
        *,
        weights: Array | None = None,
        **extra: Any,
    ) -> tuple[Tree, SecureSumState]:
        if not isinstance(state, SecureSumState):
            _check.fail("state", "what `init(params)` gave", type(state).__name__)
        stack = as_stack(updates, params)
        weights, num_nonfinite = present_weights(stack, weights)
        stack = without_nans(stack, weights)
        seen = Seen(Roster(weights, state.rule.step, extra), num_nonfinite)
        least = 2 * stack.num_rows // 3 + 1 if threshold is None else threshold
        own = jax.random.fold_in(key, state.rule.step)
        clamped: list[Array] = []
        source = Summed(Memory(stack.leaves, seen), code, own, least, clamped)
        outcome, _ = run(rule.rule, source, state.rule.rule_state)
        # A sum is zero then. To say so in the place of noise tells how many are there.
        if not is_noised(rule.rule):
            enough = seen.roster.present.sum() >= least
            kept = [jnp.where(enough, leaf, 0) for leaf in outcome.update]
            outcome = outcome._replace(update=kept, ready=outcome.ready & enough)
        reduced, new = finished(stack, outcome, seen, state.rule)
        total = sum(clamped, jnp.zeros((), jnp.int32))
        return stack.rebuild(reduced), SecureSumState(total, new)

    # optax names the first argument per_elt_updates; every caller passes it by position
    made = Aggregator(init, update)  # pyrefly: ignore[bad-argument-type]
    made.text = f"secure_sum({rule}, bound={bound:g})"
    return made


def _single_rows(rule: Rule) -> str:
    """Why a rule needs single rows; "" if it does not."""
    match rule:
        case Fold():
            adds = all(statistic.merge is jnp.add for statistic in rule.statistics)
            return "" if adds else "merges rows otherwise than by adding them"
        case Noised() | After(first=Scaling(apart=True)):
            return _single_rows(rule.rule)
        case Weighting(remembers=True):
            return "remembers updates that rows are compared with"
        case Weighting():
            reads = Reads(rule.reads)
            if reads in (Reads.NOTHING, Reads.NORM_BOUNDS):
                return ""
            what = "lengths" if reads.lengths else "products"
            return f"compares the rows' {what}"
        case Columns():
            return "sorts the rows' entries in every coordinate"
    return "chooses or mixes rows by comparing them"


class Summed(NamedTuple):
    """A source whose rows leave their clients masked, and are known by their sum.

    Attributes:
      rows: what the clients have.
      code: of the sums.
      key: of this step's masks.
      threshold: t.
      clamped: what is counted goes here.
    """

    rows: Memory
    code: FixedPoint
    key: Array
    threshold: int
    clamped: list[Array]

    @property
    def seen(self) -> Seen:
        """See `Source`; so are the others."""
        return self.rows.seen

    def inner(self, asked: Asked) -> tuple[Any, Summed]:
        """A bound of its own norm is all that a client has of these."""
        products, rows = self.rows.inner(asked)
        return products, self._replace(rows=rows)

    def combine(self, weights: Array, exact: bool = False) -> list[Array]:
        """Each client multiplies its own row by its own weight."""
        del exact
        weights = jnp.broadcast_to(weights, (len(self.rows.leaves), weights.shape[-1]))
        dtype = self.seen.roster.weights.dtype
        pairs = zip(self.rows.leaves, weights, strict=True)
        parts = [
            verbs.as_array(leaf, dtype) * _column(own, leaf) for leaf, own in pairs
        ]
        return self._total(parts)

    def statistics(self, rule: Fold) -> tuple[list[list[Array]], Summed]:
        """Each client observes its own row."""
        roster = self.seen.roster
        arrays = [verbs.as_array(x, roster.weights.dtype) for x in self.rows.leaves]
        observed = [
            [jax.vmap(statistic.observe)(leaf, roster.weights) for leaf in arrays]
            for statistic in rule.statistics
        ]
        leaves, treedef = jax.tree.flatten(observed)
        return jax.tree.unflatten(treedef, self._total(leaves)), self

    def columns(self, rule: Columns) -> tuple[list[Array], Summed]:
        """Not to be had: `secure_sum` has said so."""
        raise NotImplementedError(rule)

    def among(self, weights: Array) -> Summed:
        """Not to be had."""
        raise NotImplementedError(weights)

    def scaled(self, factors: Array, sound: Array, tested: bool) -> Summed:
        """Each client scales its own row."""
        return self._replace(rows=self.rows.scaled(factors, sound, tested))

    def mixed(self, matrix: Array, weights: Array) -> Summed:
        """Not to be had."""
        raise NotImplementedError(matrix, weights)

    def _total(self, parts: list[Array]) -> list[Array]:
        """The sum of what the clients have of each, by way of their messages."""
        roster = self.seen.roster
        limits = roster.shares * (self.code.bound / _ROOM)
        cut, numbers = jnp.zeros((), jnp.int32), list[Array]()
        for part in parts:
            limit, there = _column(limits, part), _column(roster.present, part)
            part = jnp.where(there, part, 0)
            beyond = jnp.abs(part) > limit * (1 + 1e-5)  # by more than by rounding
            cut += jnp.sum(beyond, dtype=jnp.int32)
            numbers.append(self.code.encode(jnp.clip(part, -limit, limit)))
        self.clamped.append(cut)
        sent = masked(self.key, numbers, threshold=self.threshold)
        total, _ = unmasked(sent, roster.present, threshold=self.threshold)
        return [self.code.decode(x, roster.weights.dtype) for x in total]


# What the code holds beyond the bound, for rounded shares may sum to more than 1.
_ROOM = 1 + 2e-5


def _column(of_rows: Array, like: Any) -> Array:
    """(B,) to (B, 1, ...), to go with rows."""
    return of_rows.reshape(-1, *[1] * (len(like.shape) - 1))
