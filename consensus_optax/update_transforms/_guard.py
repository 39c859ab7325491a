"""No rows beyond this point."""

from __future__ import annotations

from typing import Any

import optax

from consensus_optax._rows.stack import check_reduced
from consensus_optax._typing import Tree


def guard() -> optax.GradientTransformationExtraArgs:
    """Raises, when traced, if what comes in has not its parameters' shapes.

    Rows that no reducer has reduced change the shapes of parameters to theirs, silently
    where all of them are arrays: ``optax.adam`` takes (8, 3) for an update of (3,).
    They come through a forgotten reducer, ``optax.masked(reducer, mask)``, or a label
    of ``optax.partition`` that has no reducer. This transformation does nothing else
    than look: put it last, or right after the reducer.

    Guarantees: what goes out is what came in, and each leaf of it has the shape of its
    parameter.

    Returns:
      A transformation without state.

    Raises:
      ValueError: in ``update``, when traced: ``params`` is missing; a leaf has another
        shape than its parameter, which it names.

    Cost: none, when compiled.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> optimizer = optax.chain(optax.adam(1e-3), co.guard())  # where is the reducer?
      >>> rows, params = {"w": jnp.ones((8, 3))}, {"w": jnp.ones(3)}
      >>> optimizer.update(rows, optimizer.init(params), params)
      Traceback (most recent call last):
      ValueError: Updates must have their parameters' shapes here; leaf ...
    """

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, Any]:
        del extra
        if params is None:
            raise ValueError(
                "`co.guard` needs `params` to compare shapes with; got None. Call "
                "`update(updates, state, params)`."
            )
        check_reduced(updates, params, every=True)
        return updates, state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )
