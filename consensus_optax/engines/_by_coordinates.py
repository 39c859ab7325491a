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
from consensus_optax._leaves import AnyLeaf
from consensus_optax._rules import Among, Fold, Rows, Rule, Weighting
from consensus_optax._run import (
    AmongState,
    MemoryState,
    Outcome,
    add_previous,
    combine_all,
    fold_all,
    map_previous,
    read_products,
    run,
    settle,
    weigh,
)
from consensus_optax._statistics import halved, merge_present
from consensus_optax._typing import Array
from consensus_optax.engines._exchange import (
    AxisName,
    Spread,
    collect,
    coordinates_of_blocks,
    coordinates_of_rows,
    deal,
    own_block,
)


class Worker(NamedTuple):
    """What one device has.

    Attributes:
      axis_name: mesh axes that the rows are dealt out along.
      leaves: its rows, factored or not, rounded to what travels.
      spreads: of the parameters.
      dtypes: in which updates travel, leaf by leaf, if the rule allows it.
    """

    axis_name: AxisName
    leaves: list[AnyLeaf]
    spreads: list[Spread]
    dtypes: list[Any]

    def own(self, of_all: Array) -> Array:
        """This device's share of what there is for every row, on the last axis."""
        count = of_all.shape[-1] // lax.axis_size(self.axis_name)
        start = lax.axis_index(self.axis_name) * count
        return lax.dynamic_slice_in_dim(of_all, start, count, -1)

    def rows(self, rows: Rows) -> Rows:
        """Its own rows; what the caller said of all rows it does not need."""
        coordinates = coordinates_of_rows(self.spreads)
        return Rows(self.own(rows.weights), rows.step, {}, coordinates)

    def collect(self, blocks: Sequence[Array], exact: bool = False) -> list[Array]:
        """Blocks of an update from all devices, whole."""
        dtypes = [block.dtype for block in blocks] if exact else self.dtypes
        pairs = zip(blocks, dtypes, strict=True)
        sent = [_narrowed(block, dtype) for block, dtype in pairs]
        whole = collect(sent, [s.shape for s in self.spreads], self.axis_name)
        pairs = zip(whole, blocks, strict=True)
        return [leaf.astype(block.dtype) for leaf, block in pairs]


def run_across(rule: Rule, worker: Worker, rows: Rows, state: Any) -> Outcome:
    """Runs a rule on the rows of all devices, whose weights ``rows`` has."""
    match rule:
        case Among(selector=selector) if reads_no_pairs(selector):
            chosen, selected = _weigh(selector, worker, rows, state.selector)
            survivors = rows._replace(weights=jnp.where(chosen > 0, rows.weights, 0))
            outcome = run_across(rule.rule, worker, survivors, state.rule)
            return outcome._replace(state=AmongState(selected, outcome.state))
        case Weighting() if reads_no_pairs(rule) and not _few_bits(worker):
            return _combine_locally(rule, worker, rows, state)
        case Fold() if _statistics_are_smaller(rule, worker):
            outcome = _fold_locally(rule, worker, rows)
            return outcome._replace(update=worker.collect(outcome.update))
    dtype = rows.weights.dtype
    dealt = [_sent_rows(rule, leaf, dtype) for leaf in worker.leaves]
    blocks: list[AnyLeaf] = [*deal(dealt, worker.axis_name)]
    coordinates = coordinates_of_blocks(worker.spreads, worker.axis_name)
    own_blocks = lambda whole: [own_block(leaf, worker.axis_name) for leaf in whole]
    state = map_previous(own_blocks, rule, state)
    outcome = run(rule, blocks, rows._replace(coordinates=coordinates), state)
    remembers = isinstance(state, MemoryState)
    update = worker.collect(outcome.update, exact=remembers)
    new = map_previous(lambda _: update, rule, outcome.state)
    return Outcome(update, outcome.ready, new)


def reads_no_pairs(rule: Rule) -> bool:
    """Whether a rule weighs every row by what is known of it alone."""
    return isinstance(rule, Weighting) and rule.reads in ("norms", "nothing")


def reads_signs(rule: Rule) -> bool:
    """Whether signs may travel in place of rows."""
    return isinstance(rule, Fold) and all(s.of_signs for s in rule.statistics)


def _weigh(
    rule: Weighting, worker: Worker, rows: Rows, state: Any
) -> tuple[Array, Any]:
    """Weights of all rows from their norms, or from nothing."""
    norms = read_products(rule, worker.leaves, worker.rows(rows))
    if norms is not None:
        gather = lambda own: lax.all_gather(
            own, worker.axis_name, axis=own.ndim - 1, tiled=True, to="invarying"
        )
        norms = gather(norms)
    return weigh(rule, norms, rows, state)


def _combine_locally(
    rule: Weighting, worker: Worker, rows: Rows, state: Any
) -> Outcome:
    """Every device combines its rows; the sum of N such is a plain all-reduce."""
    rule_state = state.rule if rule.remembers else state
    weights, new = _weigh(rule, worker, rows, rule_state)
    of_rows = weights[..., : rows.weights.shape[0]]
    own = worker.rows(rows)
    combined = combine_all(worker.leaves, worker.own(of_rows), own.order)
    update = lax.psum(combined, worker.axis_name)
    if rule.remembers:
        update = add_previous(update, weights, state.previous)
        new = MemoryState(update, new)
    return Outcome(update, jnp.any(weights != 0), new)


def _fold_locally(rule: Fold, worker: Worker, rows: Rows) -> Outcome:
    """Every device folds its rows; what travels is statistics."""
    own = fold_all(rule, worker.leaves, worker.rows(rows))
    count = lax.axis_size(worker.axis_name)
    present = rows.present.reshape(count, -1).any(1)  # (N,)
    by_leaf = [jnp.stack(statistics) for statistics in zip(*own, strict=True)]
    dealt = deal(by_leaf, worker.axis_name)
    dealt = [
        leaf.reshape(count, len(rule.statistics), leaf.shape[1]) for leaf in dealt
    ]  # (N, k, width)

    def merged(index: int, leaf: Array) -> Array:
        merge = rule.statistics[index].merge

        def pair(x: Any, y: Any) -> Any:
            has_x, has_y = x[1][:, None], y[1][:, None]
            return merge_present(merge, x[0], y[0], has_x, has_y), x[1] | y[1]

        return halved((leaf[:, index], present), pair)[0]

    indices = range(len(rule.statistics))
    statistics = [[merged(index, leaf) for leaf in dealt] for index in indices]
    coordinates = coordinates_of_blocks(worker.spreads, worker.axis_name)
    rows = rows._replace(coordinates=coordinates)
    return settle(rule.resolve(statistics, rows), rows)


def _sent_rows(rule: Rule, leaf: AnyLeaf, dtype: Any) -> Array:
    """Rows as they travel: multiplied out, or their signs if nothing else is read."""
    if reads_signs(rule):
        leaf = _leaves.signs(leaf, dtype)
        return _leaves.as_array(leaf, dtype).astype(jnp.int8)
    return leaf if isinstance(leaf, jax.Array) else leaf.materialize()


def _few_bits(worker: Worker) -> bool:
    """Whether single rows travel exactly in less than float32."""
    one_row = all(leaf.shape[0] == 1 for leaf in worker.leaves)
    return one_row and all(leaf.dtype.itemsize < 4 for leaf in worker.leaves)


def _statistics_are_smaller(rule: Fold, worker: Worker) -> bool:
    """Whether statistics in float32 are fewer bytes than the rows."""
    sizes = [math.prod(leaf.shape) for leaf in worker.leaves]
    num_rows = worker.leaves[0].shape[0]
    signs = reads_signs(rule)
    pairs = zip(worker.leaves, sizes, strict=True)
    rows = sum(size * (1 if signs else leaf.dtype.itemsize) for leaf, size in pairs)
    return 4 * len(rule.statistics) * sum(sizes) < rows * num_rows


def _narrowed(block: Array, dtype: Any) -> Array:
    """The block in a dtype, unless it is a narrower one already."""
    narrower = jnp.dtype(dtype).itemsize < block.dtype.itemsize
    return block.astype(dtype) if narrower else block
