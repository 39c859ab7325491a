"""A reducer on a mesh: every device has some rows, all get the same update."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from consensus_optax import _check, _leaves
from consensus_optax._reducer import Reducer, aggregator, next_state, rule_of
from consensus_optax._rules import Rows
from consensus_optax._stack import as_stack, present_weights
from consensus_optax._typing import Array, Tree
from consensus_optax.engines._by_coordinates import Worker, reads_signs, run_across
from consensus_optax.engines._exchange import AxisName, Spread


def sharded(
    reducer: Reducer,
    axis_name: AxisName,
    *,
    wire_dtype: Any = None,
    param_specs: Tree = None,
    per_row: tuple[str, ...] = ("values",),
):
    """X."""
    rule = rule_of("reducer", reducer)

    def update(updates, state, params=None, *, weights=None, **extra):
        stack = as_stack(updates, params)
        if not stack.leaves:
            return reducer.update(updates, state, params, **extra)
        gather = lambda own: lax.all_gather(
            own, axis_name, axis=0, tiled=True, to="invarying"
        )
        floating = [
            p for p in jax.tree.leaves(params) if jnp.issubdtype(p.dtype, jnp.floating)
        ]
        spreads = [Spread(p.shape, ((),) * len(p.shape)) for p in floating]
        leaves = stack.leaves
        if wire_dtype is not None and not reads_signs(rule):
            leaves = [
                _leaves.as_array(leaf, stack.dtype).astype(wire_dtype)
                for leaf in leaves
            ]
        own, num_nonfinite = present_weights(stack._replace(leaves=leaves), weights)
        extra |= {name: gather(extra[name]) for name in per_row if name in extra}
        rows = Rows(gather(own), state.step, extra)
        dtypes = [wire_dtype or p.dtype for p in floating]
        worker = Worker(axis_name, leaves, spreads, dtypes)
        outcome = run_across(rule, worker, rows, state.rule)
        total = lax.psum(num_nonfinite, axis_name)
        return stack.rebuild(outcome.update), next_state(outcome, rows, total)

    return aggregator(reducer.init, update)
