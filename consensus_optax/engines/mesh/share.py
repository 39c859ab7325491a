"""What one device of a mesh has of all rows: held, or computed a few at a time."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._rows import verbs
from consensus_optax._rows.verbs import AnyLeaf, Leaf
from consensus_optax._rules.kinds import Fold, Roster, Rule, Weighting
from consensus_optax._running.products import read_products
from consensus_optax._running.run import combine_all, fold_all
from consensus_optax._typing import Array
from consensus_optax.engines.mesh.exchange import Exchange
from consensus_optax.engines.microbatches.batches import Block, Microbatches, Seen
from consensus_optax.engines.microbatches.folds import stream
from consensus_optax.engines.microbatches.weightings import first_pass, second_pass


class Share(Protocol):
    """The rows that one device has, and what it tells the others.

    Attributes:
      exchange: with the other devices.
      dtypes: in which updates travel, leaf by leaf, if the rule allows it.
      row_dtypes: in which rows, or what they combine to, travel.
    """

    @property
    def exchange(self) -> Exchange: ...

    @property
    def dtypes(self) -> list[Any]: ...

    @property
    def row_dtypes(self) -> list[Any]: ...

    def norms(self, rule: Weighting) -> tuple[Any, Seen]:
        """Of all rows what a rule reads that reads norms, or nothing."""
        ...

    def combine(self, rule: Weighting, weights: Array) -> list[Array]:
        """These rows, combined with their part of the weights of all."""
        ...

    def statistics(self, rule: Fold) -> tuple[list[list[Array]], Seen]:
        """What a fold makes of these rows, for every statistic leaf by leaf."""
        ...

    def deal(self, rule: Rule) -> tuple[list[Array], Seen]:
        """All rows of this device's coordinates, leaf by leaf (B, width)."""
        ...

    def among(self, weights: Array) -> Share:
        """The same rows with other weights, which are given for all rows."""
        ...

    def combines(self) -> bool:
        """Whether a combination of these rows is less to send than they are."""
        ...

    def folds(self, rule: Fold) -> bool:
        """Whether the statistics of these rows are less to send than they are."""
        ...


class Held(NamedTuple):
    """A share in memory.

    Attributes:
      exchange: see :class:`Share`.
      dtypes: likewise.
      leaves: the rows, factored or not, rounded to what travels.
      seen: all rows.
    """

    exchange: Exchange
    dtypes: list[Any]
    leaves: list[Leaf]
    seen: Seen

    @property
    def row_dtypes(self) -> list[Any]:
        """Their own."""
        return [leaf.dtype for leaf in self.leaves]

    def norms(self, rule: Weighting) -> tuple[Any, Seen]:
        """See :class:`Share`; so are the others."""
        norms = read_products(rule, self._any_leaves, self._own_rows)
        if norms is not None:
            norms = self.exchange.collect_rows(norms)
        return norms, self.seen

    def combine(self, rule: Weighting, weights: Array) -> list[Array]:
        """Combines what is held."""
        del rule
        own = self.exchange.own_rows(weights)
        return combine_all(self._any_leaves, own, self._own_rows)

    def statistics(self, rule: Fold) -> tuple[list[list[Array]], Seen]:
        """Folds what is held."""
        return fold_all(rule, self._any_leaves, self._own_rows), self.seen

    def deal(self, rule: Rule) -> tuple[list[Array], Seen]:
        """One exchange of all rows."""
        dtype = self.seen.rows.weights.dtype
        sent = [_as_sent(rule, leaf, dtype) for leaf in self.leaves]
        return self.exchange.deal(sent), self.seen

    def among(self, weights: Array) -> Held:
        """Nothing is computed."""
        rows = self.seen.rows._replace(weights=weights)
        return self._replace(seen=self.seen._replace(rows=rows))

    def combines(self) -> bool:
        """One narrow row travels without loss in fewer bytes than a combination."""
        narrow = (x.shape[0] == 1 and x.dtype.itemsize < 4 for x in self.leaves)
        return not all(narrow)

    def folds(self, rule: Fold) -> bool:
        """Statistics are in the dtype of decisions, signs in int8."""
        wide = self.seen.rows.weights.dtype.itemsize
        of_row = lambda leaf: math.prod(leaf.shape[1:])
        each = lambda leaf: 1 if reads_signs(rule) else leaf.dtype.itemsize
        sent = sum(math.prod(leaf.shape) * each(leaf) for leaf in self.leaves)
        return wide * len(rule.statistics) * sum(map(of_row, self.leaves)) < sent

    @property
    def _any_leaves(self) -> list[AnyLeaf]:
        """The leaves, for whom mixed rows would do as well."""
        leaves: list[AnyLeaf] = []
        leaves += self.leaves
        return leaves

    @property
    def _own_rows(self) -> Roster:
        """Its own of all rows; what the caller said of all it does not need."""
        rows = self.seen.rows
        weights = self.exchange.own_rows(rows.weights)
        return Roster(weights, rows.step, {}, self.exchange.of_rows())


class Computed(NamedTuple):
    """A share that is computed a few rows at a time, as often as it is looked at.

    What travels are statistics and combinations, or all rows where a rule compares
    them: they are dealt out as they come, and held as coordinates.

    Attributes:
      exchange: see :class:`Share`.
      dtypes: likewise.
      microbatches: of the device's rows.
      step: () int32, updates made so far.
    """

    exchange: Exchange
    dtypes: list[Any]
    microbatches: Microbatches
    step: Array

    @property
    def row_dtypes(self) -> list[Any]:
        """That of decisions, in which they are combined."""
        return [self.microbatches.weights.dtype for _ in self.dtypes]

    def norms(self, rule: Weighting) -> tuple[Any, Seen]:
        """One pass."""
        norms, *seen = first_pass(rule, self.microbatches, None)
        if norms is not None:
            norms = self.exchange.collect_rows(norms)
        return norms, self._seen(*seen)

    def combine(self, rule: Weighting, weights: Array) -> list[Array]:
        """One pass, which adds in the dtype of decisions."""
        own = self.exchange.own_rows(weights)
        return second_pass(rule, own, self.microbatches)

    def statistics(self, rule: Fold) -> tuple[list[list[Array]], Seen]:
        """One pass."""
        merged, *seen = stream(rule, self.microbatches)
        return merged, self._seen(*seen)

    def deal(self, rule: Rule) -> tuple[list[Array], Seen]:
        """One pass, with an exchange for every microbatch."""

        def step(carry: None, block: Block) -> tuple[None, Any]:
            stack = block.stack
            sent = [_as_sent(rule, leaf, stack.dtype) for leaf in stack.leaves]
            kept = (block.weights, block.num_nonfinite, block.value)
            return carry, (self.exchange.deal(sent), *kept)

        _, (dealt, weights, bad, value) = self.microbatches.scan(step, None)
        weights, value = self.microbatches.in_order((weights, value))
        return list(map(self._in_order, dealt)), self._seen(weights, bad.sum(), value)

    def among(self, weights: Array) -> Computed:
        """Nothing is computed yet."""
        own = self.exchange.own_rows(weights)
        return self._replace(microbatches=self.microbatches._replace(weights=own))

    def combines(self) -> bool:
        """Always, since rows would have to be held."""
        return True

    def folds(self, rule: Fold) -> bool:
        """Always, as above."""
        del rule
        return True

    def _in_order(self, dealt: Array) -> Array:
        """(k, N m, width) of k microbatches to (B, width), device after device."""
        count, _, width = dealt.shape
        devices = self.exchange.num_devices
        apart = dealt.reshape(count, devices, -1, width)
        rows = apart.transpose(1, 2, 0, 3).reshape(devices, -1, width)
        return rows[:, : self.microbatches.arranged.num_rows].reshape(-1, width)

    def _seen(self, weights: Array, num_nonfinite: Array, value: Any) -> Seen:
        exchange, losses = self.exchange, self.microbatches.losses(value)
        values = {"values": exchange.collect_rows(losses)}
        rows = Roster(exchange.collect_rows(weights), self.step, values)
        return Seen(rows, lax.psum(num_nonfinite, exchange.axis_name), value)


def reads_signs(rule: Rule) -> bool:
    """Whether signs may travel in place of rows."""
    return isinstance(rule, Fold) and all(s.of_signs for s in rule.statistics)


def _as_sent(rule: Rule, leaf: Leaf, dtype: Any) -> Array:
    """Rows as they travel: multiplied out, or their signs if nothing else is read."""
    if reads_signs(rule):
        return verbs.as_array(verbs.signs(leaf, dtype), dtype).astype(jnp.int8)
    return leaf if isinstance(leaf, jax.Array) else leaf.materialize()
