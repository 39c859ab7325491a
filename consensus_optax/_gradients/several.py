"""Rows of several losses put together from what each contributes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from consensus_optax._gradients.contraction import worth
from consensus_optax._gradients.moves import total
from consensus_optax._gradients.pullbacks import Part
from consensus_optax._rows.layers import placed
from consensus_optax._rows.outer_product import OuterProduct, is_outer_product
from consensus_optax._typing import Array


def put_together(parts: Sequence[Part], count: int, row: Any) -> Any:
    """Rows (K, *shape) of one leaf, ``row`` being the type of one, (1, *shape)."""
    own: dict[int, Any] = {}
    for part in parts:
        if part.task is not None:
            held = own.get(part.task)
            own[part.task] = part.rows if held is None else _sum(held, part.rows)
    rows = [part.rows for part in parts if part.task is None]
    rows += [_one_below_another(own, count)] if own else []
    if not rows:
        return jnp.zeros((count, *row.shape[1:]), row.dtype)
    return worth(placed(functools.reduce(_sum, rows), row.sharding.spec))


def _sum(x: Any, y: Any) -> Any:
    both = total(x, y)
    return both[0] if both else _array(x) + _array(y)


def _array(rows: Any) -> Array:
    return rows.materialize() if is_outer_product(rows) else rows


def _one_below_another(own: dict[int, Any], count: int) -> Any:
    """Rows of single losses, (1, ...), among zeros for all other losses."""
    leaves = list(own.values())
    if all(map(is_outer_product, leaves)) and len(set(map(_layout, leaves))) == 1:
        terms = max(leaf.sides[0] for leaf in leaves)
        padded = {task: _padded(leaf, terms) for task, leaf in own.items()}
        side = lambda name: _stacked(
            {task: getattr(leaf, name) for task, leaf in padded.items()}, count
        )
        leaf = dataclasses.replace(leaves[0], left=side("left"), right=side("right"))
        if is_outer_product(worth(leaf)):
            return leaf
    return _stacked({task: _array(leaf) for task, leaf in own.items()}, count)


def _layout(leaf: OuterProduct) -> Any:
    """What two products must have in common to be rows of one."""
    factors = [(x.ndim, x.dtype, x.shape[1:-2]) for x in (leaf.left, leaf.right)]
    precision = str(leaf.precision)
    sides = leaf.row_shape, leaf.sides[1:], leaf.steps
    return *sides, leaf.dtype, precision, *factors


def _padded(leaf: OuterProduct, terms: int) -> OuterProduct:
    """The same rows with more terms, of zeros."""
    axis = leaf.right.ndim - 2

    def fill(factor: Array) -> Array:
        edges = [(0, 0)] * factor.ndim
        edges[axis] = (0, terms - factor.shape[axis])
        return jnp.pad(factor, edges)

    return dataclasses.replace(leaf, left=fill(leaf.left), right=fill(leaf.right))


def _stacked(own: dict[int, Array], count: int) -> Array:
    """Rows (K, ...) of those that are there, each (1, ...), and zeros."""
    zeros = jnp.zeros_like(next(iter(own.values())))
    return jnp.concatenate([own.get(task, zeros) for task in range(count)])
