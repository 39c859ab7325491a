"""Parameters that stand still while rows of them come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from consensus_optax import _check
from consensus_optax._typing import Tree


def freeze(
    optimizer: optax.GradientTransformation, mask: Tree | Callable[[Tree], Tree]
) -> optax.GradientTransformationExtraArgs:
    r"""Trains some parameters and leaves others where they are.

    .. math:: u_j = \begin{cases} 0 & \text{frozen} \\ T(g)_j & \text{else}\end{cases}

    for each leaf j, with an optimizer T that never sees a frozen one: neither its rows
    nor its values. (``optax.freeze`` and ``optax.selective_transform`` make zeros of
    the shape of what comes in: of rows, and the parameters take that shape.)

    Guarantees: the update of a frozen leaf is exactly zero, in its own shape and dtype,
    also under weight decay; that of the others is what T gives for a model without the
    frozen leaves; T has no state for them.
    Edge cases: all frozen: the update is zero. Rows are counted and compared without
    the frozen leaves: a nan in one of these excludes no row.

    Args:
      optimizer: all that follows, ``optax.chain(co.mean(), optax.adam(1e-3))``.
      mask: True where a parameter is frozen: bools in a tree like the parameters, or
        one for a whole subtree, or a function of the parameters that gives them.

    Returns:
      A transformation of rows, or of updates: whatever ``optimizer`` takes. Its state
      is that of ``optimizer``.

    Raises:
      ValueError: ``mask`` is no such tree; when traced, ``params`` is missing, and as
        ``optimizer`` does.

    Cost: none for a frozen leaf: compiled together with the loss, its rows are not
    computed.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> train = optax.chain(co.mean(), optax.sgd(1.0))
      >>> optimizer = co.freeze(train, {"body": True, "head": False})
      >>> params = {"body": jnp.ones(2), "head": jnp.ones(1)}
      >>> rows = {"body": jnp.ones((4, 2)), "head": jnp.ones((4, 1))}
      >>> optimizer.update(rows, optimizer.init(params), params)[0]["body"].tolist()
      [0.0, 0.0]
    """
    inner = optax.with_extra_args_support(optimizer)

    def split(params: Tree) -> tuple[list[bool], Callable[[Tree], Tree]]:
        """Which leaves are frozen, and what leaves these out of a tree."""
        given = mask(params) if callable(mask) else mask
        try:
            frozen = jax.tree.leaves(jax.tree.broadcast(given, params))
        except ValueError:
            frozen = [given]  # of another structure
        if not all(isinstance(flag, bool | np.bool_) for flag in frozen):
            wanted = "a tree of bools like `params`, or a prefix of one"
            _check.fail("mask", wanted, given)
        treedef = jax.tree.structure(params)

        def moving(tree: Tree) -> Tree:
            pairs = zip(treedef.flatten_up_to(tree), frozen, strict=True)
            kept = [optax.MaskedNode() if flag else leaf for leaf, flag in pairs]
            return jax.tree.unflatten(treedef, kept)

        return frozen, moving

    def init(params: Tree) -> Any:
        if not jax.tree.leaves(params):  # as optax.tree.map_params asks
            return inner.init(params)
        _, moving = split(params)
        return inner.init(moving(params))

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, Any]:
        if params is None:
            raise ValueError(
                "`co.freeze` needs `params` for the shapes of zero updates; got None. "
                "Call `update(rows, state, params)`."
            )
        frozen, moving = split(params)
        target = extra.get("target")
        if jax.tree.structure(target) == jax.tree.structure(params):
            extra["target"] = moving(target)
        moved, state = inner.update(moving(updates), state, moving(params), **extra)
        leaves, treedef = jax.tree.flatten(params)
        triples = zip(leaves, treedef.flatten_up_to(moved), frozen, strict=True)
        whole = [jnp.zeros_like(p) if flag else u for p, u, flag in triples]
        return jax.tree.unflatten(treedef, whole), state

    return optax.GradientTransformationExtraArgs(init, update)
