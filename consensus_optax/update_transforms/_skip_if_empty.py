"""No step without consensus."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from consensus_optax._rows.explicit import zeros_as
from consensus_optax._rows.stack import check_reduced
from consensus_optax._rows.trees import arrays_of, floating_leaves
from consensus_optax._typing import Array, Count, Tree


class SkipIfEmptyState(NamedTuple):
    """State of :func:`skip_if_empty`.

    Attributes:
      skipped: () int32, steps in which the optimizer was left alone so far.
      inner: state of the wrapped optimizer.
    """

    skipped: Count
    inner: Any


def skip_if_empty(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Leaves an optimizer and its state alone when the incoming update is all zero.

    Adam moves on by its momentum, and AdamW decays, when it is fed zeros. After an
    empty consensus neither should happen: here moments, counts, schedules and weight
    decay stand still, and the update is exactly zero.

    Guarantees: state and update of the optimizer are those it would have, had the
    empty steps not been. Decided inside the compiled step, without a host.

    Args:
      optimizer: what comes after the reducer, such as ``optax.adam(1e-3)``.

    Returns:
      A transformation with a ``skipped`` count in its state.

    Raises:
      ValueError: when traced, rows come in, which no reducer has reduced.

    Cost: one comparison of the update with zero; no second state.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> tx = optax.chain(co.cosine_filter(), co.skip_if_empty(optax.adamw(1e-3)))
      >>> params = jnp.ones(2)
      >>> rows = jnp.array([[1., 0.], [-1., 0.]])  # they disagree
      >>> tx.update(rows, tx.init(params), params)[0].tolist()
      [0.0, 0.0]
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Tree) -> SkipIfEmptyState:
        return SkipIfEmptyState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, SkipIfEmptyState]:
        if params is not None:
            check_reduced(updates, arrays_of(params))

        def step() -> tuple[Tree, Any]:
            return inner.update(updates, state.inner, params, **extra)

        shapes, _ = jax.eval_shape(step)

        def stand_still() -> tuple[Tree, Any]:
            return zeros_as(shapes), state.inner

        moved = any_nonzero(updates)
        new_updates, new_inner = lax.cond(moved, step, stand_still)
        skipped = state.skipped + (~moved).astype(jnp.int32)
        return new_updates, SkipIfEmptyState(skipped, new_inner)

    return optax.GradientTransformationExtraArgs(init, update)


def any_nonzero(tree: Tree) -> Array:
    """Whether any floating leaf has an entry other than zero, () bool."""
    flags = [jnp.any(leaf != 0) for leaf in floating_leaves(tree)]
    return jnp.any(jnp.stack(flags)) if flags else jnp.asarray(False)
