"""Which parameters the rows agree on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._rows.finite import finite_rows
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rows.stack import as_rows, checked_weights
from consensus_optax._rows.statistics import (
    WEIGHTED_MAGNITUDE,
    WEIGHTED_SIGN,
    WEIGHTED_SUM,
)
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._typing import Array, Tree
from consensus_optax.diagnostics._coherence import coherence
from consensus_optax.diagnostics._gramian import gramian


def leaf_agreement(
    rows: Tree, weights: Array | None = None, measure: str = "coherence"
) -> Tree:
    r"""How far the rows agree, parameter by parameter.

    .. math:: \text{coherence: } \frac{\|\sum_i w_i g_i\|^2}{\sum_i w_i^2 \|g_i\|^2},
        \qquad \text{signs: } \mathrm{mean}_p
        \Big|\sum_i \omega_i\, \mathrm{sign}(g_{ip})\Big|,
        \qquad \text{purity: } \mathrm{mean}_p
        \frac{|\sum_i w_i g_{ip}|}{\sum_i w_i |g_{ip}|}

    Guarantees: scale-free; 1 is full agreement for ``"signs"`` (of entries that are not
    zero) and ``"purity"``, N for ``"coherence"``.
    Edge cases: a row with a non-finite entry in any leaf is absent from all. A leaf of
    zeros, or no row: 0.

    Args:
      rows: tree of (B, \*shape) leaves.
      weights: (B,), 0 = absent; None: all ones.
      measure: ``"coherence"``, ``"signs"`` or ``"purity"``.

    Returns:
      A tree like the rows, with one number for each leaf; 0 for leaves that carry no
      gradient. :func:`plot_agreement` draws it.

    Raises:
      ValueError: ``measure`` is none of the three.

    Cost: one Gramian of each leaf, or one pass over the rows.

    References: `sign agreement <https://arxiv.org/abs/2009.00329>`_, 2020; `purity
    <https://arxiv.org/abs/2010.06808>`_, 2020; `coherence
    <https://arxiv.org/abs/2008.01217>`_, 2020.

    Examples:
      >>> import jax.numpy as jnp
      >>> rows = {"a": jnp.array([[1.], [1.]]), "b": jnp.array([[1.], [-1.]])}
      >>> agreement = leaf_agreement(rows)
      >>> agreement["a"].item(), agreement["b"].item()
      (2.0, 0.0)
    """
    _check.one_of("measure", measure, ("coherence", "signs", "purity"))
    leaves, _ = as_rows(rows, None)
    weights, order = present_weights(leaves, weights)
    flat, treedef = jax.tree.flatten(rows, is_leaf=is_outer_product)
    moving = iter(leaves)
    numbers = [
        jnp.zeros(())
        if not jnp.issubdtype(leaf.dtype, jnp.floating)
        else _agreement(next(moving), weights, order, measure)
        for leaf in flat
    ]
    return jax.tree.unflatten(treedef, numbers)


def present_weights(leaves: list[Any], weights: Array | None) -> tuple[Array, Array]:
    """Weights with 0 for absent rows, and for each row one that is there to read."""
    if not leaves:
        return jnp.zeros(0), jnp.zeros(0, jnp.int32)
    dtype, count = verbs.decision_dtype(leaves), leaves[0].shape[0]
    weights = checked_weights(weights, count, dtype)
    there = (weights > 0) & finite_rows(leaves, dtype)
    order = jnp.where(there, jnp.arange(count), jnp.argmax(there))
    return jnp.where(there, weights, 0), order


def _agreement(leaf: Any, weights: Array, order: Array, measure: str) -> Array:
    """The number of one leaf."""
    if measure == "coherence":
        return coherence(gramian(leaf), weights)
    if measure == "signs":
        (votes,) = verbs.fold(leaf, (WEIGHTED_SIGN,), weights, order)
        share = jnp.abs(votes) / jnp.where(weights.any(), weights.sum(), 1)
    else:
        statistics = (WEIGHTED_SUM, WEIGHTED_MAGNITUDE)
        total, size = verbs.fold(leaf, statistics, weights, order)
        share = jnp.abs(total) / positive_or_one(size)
    mean = jnp.sum(share) / max(share.size, 1)
    return jnp.where(weights.any(), mean, 0)
