"""Running a rule where every device has some rows: what travels, and who sums.

Most rules look at all rows of a coordinate or at inner products, which are sums over
coordinates: rows are exchanged for coordinates once, and each device runs the rule on
its part. What needs less sends less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax import _leaves
from consensus_optax._leaves import AnyLeaf, Leaf
from consensus_optax._products import read_products
from consensus_optax._rules import Among, Fold, Rows, Rule, Weighting
from consensus_optax._run import (
    AmongState,
    MemoryState,
    Outcome,
    add_previous,
    combine_all,
    fold_all,
    map_previous,
    run,
    settle,
    weigh,
)
from consensus_optax._statistics import halved, merge_present
from consensus_optax._typing import Array
from consensus_optax.engines._exchange import Exchange


class Worker(NamedTuple):
    """What one device has.

    Attributes:
      exchange: with the other devices.
      leaves: its rows, factored or not, rounded to what travels.
      dtypes: in which updates travel, leaf by leaf, if the rule allows it.
    """

    exchange: Exchange
    leaves: list[Leaf]
    dtypes: list[Any]

    @property
    def any_leaves(self) -> list[AnyLeaf]:
        """The leaves, for whom mixed rows would do as well."""
        leaves: list[AnyLeaf] = []
        leaves += self.leaves
        return leaves

    def rows(self, rows: Rows) -> Rows:
        """Its own of all rows; what the caller said of all it does not need."""
        weights = self.exchange.own_rows(rows.weights)
        return Rows(weights, rows.step, {}, self.exchange.of_rows())

    def collect(self, blocks: Sequence[Array], exact: bool = False) -> list[Array]:
        """Blocks of an update from all devices, whole."""
        wanted = [block.dtype for block in blocks] if exact else self.dtypes
        pairs = zip(blocks, wanted, strict=True)
        whole = self.exchange.collect([_narrowed(*pair) for pair in pairs])
        pairs = zip(whole, blocks, strict=True)
        return [leaf.astype(block.dtype) for leaf, block in pairs]


def run_across(rule: Rule, worker: Worker, rows: Rows, state: Any) -> Outcome:
    """Runs a rule on the rows of all devices, whose weights ``rows`` has."""
    exchange = worker.exchange
    match rule:
        case Among(selector=selector) if _reads_no_pairs(selector):
            chosen, selected = _weigh(selector, worker, rows, state.selector)
            survivors = rows._replace(weights=jnp.where(chosen > 0, rows.weights, 0))
            outcome = run_across(rule.rule, worker, survivors, state.rule)
            return outcome._replace(state=AmongState(selected, outcome.state))
        case Weighting() if _reads_no_pairs(rule) and not _is_one_narrow_row(worker):
            return _combine_locally(rule, worker, rows, state)
        case Fold() if _statistics_are_smaller(rule, worker, rows.weights.dtype):
            outcome = _fold_locally(rule, worker, rows)
            return outcome._replace(update=worker.collect(outcome.update))
    sent = [_as_sent(rule, leaf, rows.weights.dtype) for leaf in worker.leaves]
    blocks: list[AnyLeaf] = [*exchange.deal(sent)]
    in_blocks = lambda previous: [exchange.own_block(leaf) for leaf in previous]
    outcome = run(
        rule,
        blocks,
        rows._replace(coordinates=exchange.of_blocks()),
        map_previous(in_blocks, rule, state),
    )
    update = worker.collect(outcome.update, exact=_remembers(outcome.state))
    new = map_previous(lambda _: update, rule, outcome.state)
    return Outcome(update, outcome.ready, new)


def reads_signs(rule: Rule) -> bool:
    """Whether signs may travel in place of rows."""
    return isinstance(rule, Fold) and all(s.of_signs for s in rule.statistics)


def _reads_no_pairs(rule: Rule) -> bool:
    """Whether a rule weighs every row by what is known of it alone."""
    return isinstance(rule, Weighting) and rule.reads in ("norms", "nothing")


def _remembers(state: Any) -> bool:
    """Whether the update is part of the state, which loses no digits."""
    while isinstance(state, AmongState):
        state = state.rule
    return isinstance(state, MemoryState)


def _weigh(
    rule: Weighting, worker: Worker, rows: Rows, state: Any
) -> tuple[Array, Any]:
    """Weights of all rows from their norms, or from nothing."""
    norms = read_products(rule, worker.any_leaves, worker.rows(rows))
    if norms is not None:
        norms = worker.exchange.collect_rows(norms)
    return weigh(rule, norms, rows, state)


def _combine_locally(
    rule: Weighting, worker: Worker, rows: Rows, state: Any
) -> Outcome:
    """Every device combines its rows; the sum of N such is a plain all-reduce."""
    rule_state = state.rule if rule.remembers else state
    weights, new = _weigh(rule, worker, rows, rule_state)
    own_weights = worker.exchange.own_rows(weights[..., : rows.weights.shape[0]])
    combined = combine_all(worker.any_leaves, own_weights, worker.rows(rows))
    update = _summed(worker, combined)
    if rule.remembers:
        update = add_previous(update, weights, state.previous)
        new = MemoryState(update, new)
    return Outcome(update, jnp.any(weights != 0), new)


def _summed(worker: Worker, combined: list[Array]) -> list[Array]:
    """Sum over devices: in float32 an all-reduce, else narrow numbers are sent."""
    dtypes = [leaf.dtype for leaf in worker.leaves]
    if all(dtype.itemsize >= 4 for dtype in dtypes):
        return lax.psum(combined, worker.exchange.axis_name)
    pairs = zip(combined, dtypes, strict=True)
    dealt = worker.exchange.deal([_narrowed(x, dtype)[None] for x, dtype in pairs])
    pairs = zip(dealt, combined, strict=True)
    return worker.collect([block.astype(x.dtype).sum(0) for block, x in pairs])


def _fold_locally(rule: Fold, worker: Worker, rows: Rows) -> Outcome:
    """Every device folds its rows; what travels is statistics, in float32."""
    exchange = worker.exchange
    own = fold_all(rule, worker.any_leaves, worker.rows(rows))
    present = rows.present.reshape(exchange.num_devices, -1).any(1)  # (N,)
    by_leaf = [jnp.stack(statistics) for statistics in zip(*own, strict=True)]
    apart = (exchange.num_devices, len(rule.statistics))
    dealt = [x.reshape(*apart, x.shape[1]) for x in exchange.deal(by_leaf)]

    def merged(index: int, leaf: Array) -> Array:
        merge = rule.statistics[index].merge

        def pair(x: Any, y: Any) -> Any:
            has_x, has_y = x[1][:, None], y[1][:, None]
            return merge_present(merge, x[0], y[0], has_x, has_y), x[1] | y[1]

        return halved((leaf[:, index], present), pair)[0]

    statistics = [[merged(k, leaf) for leaf in dealt] for k in range(apart[1])]
    rows = rows._replace(coordinates=exchange.of_blocks())
    return settle(rule.resolve(statistics, rows), rows)


def _as_sent(rule: Rule, leaf: Leaf, dtype: Any) -> Array:
    """Rows as they travel: multiplied out, or their signs if nothing else is read."""
    if reads_signs(rule):
        return _leaves.as_array(_leaves.signs(leaf, dtype), dtype).astype(jnp.int8)
    return leaf if isinstance(leaf, jax.Array) else leaf.materialize()


def _is_one_narrow_row(worker: Worker) -> bool:
    """Whether rows travel without loss in fewer bytes than their combination."""
    return all(x.shape[0] == 1 and x.dtype.itemsize < 4 for x in worker.leaves)


def _statistics_are_smaller(rule: Fold, worker: Worker, dtype: Any) -> bool:
    """Whether statistics in the dtype of decisions are fewer bytes than the rows."""
    signs = reads_signs(rule)
    of_row = lambda leaf: math.prod(leaf.shape[1:])
    sent = sum(
        math.prod(leaf.shape) * (1 if signs else leaf.dtype.itemsize)
        for leaf in worker.leaves
    )
    merged = dtype.itemsize * len(rule.statistics) * sum(map(of_row, worker.leaves))
    return merged < sent


def _narrowed(block: Array, dtype: Any) -> Array:
    """The block in a dtype, unless it is in a narrower one already."""
    narrower = jnp.dtype(dtype).itemsize < block.dtype.itemsize
    return block.astype(dtype) if narrower else block
