"""What clipping, normalizing and scaling share: every row times a number."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consensus_optax._rows import verbs
from consensus_optax._rows.explicit import of_each_row
from consensus_optax._rows.finite import cleared, finite_rows, spoiled
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rows.stack import as_rows
from consensus_optax._rows.verbs import Leaf
from consensus_optax._typing import Array, Count, Number, Tree


class RowScalingState(NamedTuple):
    """State of an example transformation that scales rows.

    Attributes:
      step: () int32, updates made so far.
      scaled_share: () float32, share of rows that the last step made shorter.
    """

    step: Count
    scaled_share: Number


def row_scaling(
    factor: Callable[[Array, Array], Array],
) -> optax.GradientTransformationExtraArgs:
    """An example transformation: row i times factor(norms, step)[i].

    A row whose norm is not finite (bad entries, or the norm overflows) becomes nan
    altogether, so that the reducer excludes and counts it: a factor of 0 would turn an
    overflowing row into a sound row of zeros.
    """

    def init(params: Tree) -> RowScalingState:
        del params
        return RowScalingState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, RowScalingState]:
        del extra
        step = jnp.asarray(optax.safe_increment(state.step))
        rows, dtype = as_rows(updates, params)
        if not rows:
            return updates, state._replace(step=step)
        updates, rows, sound = without_broken(updates, rows, dtype)
        squares = lambda rows: [verbs.squared_norms(leaf, dtype) for leaf in rows]
        add = lambda rows: functools.reduce(jnp.add, squares(rows))
        norms = jnp.sqrt(of_each_row(add, rows))
        sound &= jnp.isfinite(norms)
        factors = jnp.where(sound, factor(norms, state.step), 1)
        share = jnp.mean((factors < 1).astype(jnp.float32))
        return scaled(updates, factors, sound), RowScalingState(step, share)

    return optax.GradientTransformationExtraArgs(init, update)


def scaled(updates: Tree, factors: Array, sound: Array) -> Tree:
    """Row i of every floating leaf times factors[i]; other rows than sound ones nan."""
    stops = jax.debug_nans.value
    factors = factors if stops else jnp.where(sound, factors, jnp.nan)

    def scale(leaf: Any) -> Any:
        moves = jnp.issubdtype(leaf.dtype, jnp.floating)
        new = verbs.scale(leaf, factors) if moves else leaf
        return spoiled(new, sound) if stops else new

    return jax.tree.map(scale, updates, is_leaf=is_outer_product)


def without_broken(
    updates: Tree, rows: list[Leaf], dtype: Any
) -> tuple[Tree, list[Leaf], Array]:
    """Rows to calculate with, all of them and the floating leaves; which are sound.

    Broken rows are what they are, and sound here, except under ``jax_debug_nans``:
    eagerly that stops at a nan that is made of one, or on purpose.
    """
    if not jax.debug_nans.value:
        return updates, rows, jnp.ones(rows[0].shape[0], bool)
    sound = finite_rows(rows, dtype)
    clear = lambda leaf: cleared(leaf, sound)
    updates = jax.tree.map(clear, updates, is_leaf=is_outer_product)
    return updates, list(map(clear, rows)), sound
