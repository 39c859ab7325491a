"""Running a rule where every device has some rows: what travels, and who sums.

Most rules look at all rows of a coordinate or at inner products, which are sums over
coordinates: rows are exchanged for coordinates once, and each device runs the rule on
its part. What needs less sends less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._rows.statistics import halved, merge_present
from consensus_optax._rows.verbs import AnyLeaf
from consensus_optax._rules.kinds import Among, Fold, Rule, Weighting
from consensus_optax._running.reducer import Aggregator
from consensus_optax._running.run import (
    AmongState,
    MemoryState,
    Outcome,
    add_previous,
    map_previous,
    run,
    settle,
    weigh,
)
from consensus_optax._typing import Array
from consensus_optax.engines.mesh.exchange import Exchange
from consensus_optax.engines.mesh.share import Computed, Share
from consensus_optax.engines.mesh.specs import is_inside, specs_of, spread_of
from consensus_optax.engines.microbatches.batches import Microbatches, Seen


class Sharded(Aggregator):
    """A reducer on a mesh, as `sharded` makes it, for engines that compute rows.

    Attributes:
      rule: the reducer's.
      axes: mesh axes that rows are sharded along.
      plain: whether parameters are whole and rows travel as they are.
    """

    rule: Rule
    axes: tuple[str, ...]
    plain: bool

    def of_all_rows(self, own: Array) -> Array:
        """What there is for every row, (L,) on a device, of all rows."""
        return (
            Exchange(self.axes, []).collect_rows(own) if is_inside(self.axes) else own
        )

    def run_microbatched(
        self, microbatches: Microbatches, state: Any
    ) -> tuple[Outcome, Seen]:
        """Runs the rule on rows that each device computes a few at a time.

        Raises:
          ValueError: when traced, where that is not to be had.
        """
        if not (self.plain and is_inside(self.axes)):
            raise ValueError(
                "A sharded reducer takes microbatches inside of a `jax.shard_map` over "
                f"its axes {self.axes} alone, and without `param_specs` and "
                "`wire_dtype`. Leave `microbatch_size` out, or these."
            )
        params = microbatches.params
        leaves = [
            leaf
            for leaf in jax.tree.leaves(params)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
        pairs = zip(leaves, specs_of(params, None), strict=True)
        exchange = Exchange(self.axes, [spread_of(x.shape, spec) for x, spec in pairs])
        dtypes = [leaf.dtype for leaf in leaves]
        share = Computed(exchange, dtypes, microbatches, state.step)
        return run_across(self.rule, share, state.rule_state)


def run_across(rule: Rule, share: Share, state: Any) -> tuple[Outcome, Seen]:
    """Runs a rule on the rows of all devices, of which this one has a share."""
    exchange = share.exchange
    match rule:
        case Among(selector=selector) if _reads_no_pairs(selector):
            chosen, selected, seen = _weigh(selector, share, state.selector_state)
            survivors = jnp.where(chosen > 0, seen.rows.weights, 0)
            outcome, _ = run_across(rule.rule, share.among(survivors), state.rule_state)
            return outcome._replace(state=AmongState(selected, outcome.state)), seen
        case Weighting() if _reads_no_pairs(rule) and share.combines():
            return _combine_locally(rule, share, state)
        case Fold() if share.folds(rule):
            return _fold_locally(rule, share)
    dealt, seen = share.deal(rule)
    blocks: list[AnyLeaf] = [*dealt]
    in_blocks = lambda previous: [exchange.own_block(leaf) for leaf in previous]
    outcome = run(
        rule,
        blocks,
        seen.rows._replace(coordinates=exchange.of_blocks()),
        map_previous(in_blocks, rule, state),
    )
    update = _collect(share, outcome.update, exact=_remembers(outcome.state))
    new = map_previous(lambda _: update, rule, outcome.state)
    return Outcome(update, outcome.ready, new), seen


def _reads_no_pairs(rule: Rule) -> bool:
    """Whether a rule weighs every row by what is known of it alone."""
    return isinstance(rule, Weighting) and rule.reads in ("norms", "nothing")


def _remembers(state: Any) -> bool:
    """Whether the update is part of the state, which loses no digits."""
    while isinstance(state, AmongState):
        state = state.rule_state
    return isinstance(state, MemoryState)


def _collect(share: Share, blocks: Sequence[Array], exact: bool = False) -> list[Array]:
    """Blocks of an update from all devices, whole."""
    wanted = [block.dtype for block in blocks] if exact else share.dtypes
    pairs = zip(blocks, wanted, strict=True)
    whole = share.exchange.collect([_narrowed(*pair) for pair in pairs])
    pairs = zip(whole, blocks, strict=True)
    return [leaf.astype(block.dtype) for leaf, block in pairs]


def _weigh(rule: Weighting, share: Share, state: Any) -> tuple[Array, Any, Seen]:
    """Weights of all rows from their norms, or from nothing."""
    norms, seen = share.norms(rule)
    return *weigh(rule, norms, seen.rows, state), seen


def _combine_locally(rule: Weighting, share: Share, state: Any) -> tuple[Outcome, Seen]:
    """Every device combines its rows; the sum of N such is a plain all-reduce."""
    rule_state = state.rule_state if rule.remembers else state
    weights, new, seen = _weigh(rule, share, rule_state)
    count = seen.rows.weights.shape[0]
    update = _summed(share, share.combine(rule, weights[..., :count]))
    if rule.remembers:
        update = add_previous(update, weights, state.previous)
        new = MemoryState(update, new)
    return Outcome(update, jnp.any(weights != 0), new), seen


def _summed(share: Share, combined: list[Array]) -> list[Array]:
    """Sum over devices: in float32 an all-reduce, else narrow numbers are sent."""
    if all(dtype.itemsize >= 4 for dtype in share.row_dtypes):
        return lax.psum(combined, share.exchange.axis_name)
    pairs = zip(combined, share.row_dtypes, strict=True)
    dealt = share.exchange.deal([_narrowed(x, dtype)[None] for x, dtype in pairs])
    pairs = zip(dealt, combined, strict=True)
    return _collect(share, [block.astype(x.dtype).sum(0) for block, x in pairs])


def _fold_locally(rule: Fold, share: Share) -> tuple[Outcome, Seen]:
    """Every device folds its rows; what travels is statistics, in float32."""
    exchange = share.exchange
    own, seen = share.statistics(rule)
    rows = seen.rows
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
    outcome = settle(rule.resolve(statistics, rows), rows)
    return outcome._replace(update=_collect(share, outcome.update)), seen


def _narrowed(block: Array, dtype: Any) -> Array:
    """The block in a dtype, unless it is in a narrower one already."""
    narrower = jnp.dtype(dtype).itemsize < block.dtype.itemsize
    return block.astype(dtype) if narrower else block
