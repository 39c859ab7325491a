"""Copies of an honest row."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._typing import Array, Tree


def mimic(
    honest: Tree, num_byzantine: int, key: Array | None = None, *, index: int | None = 0
) -> Tree:
    r"""Copies of one honest row, which then counts f + 1 times.

    No rule can call it dishonest; where honest rows differ it takes the update away
    from their mean (Karimireddy et al., `Byzantine-Robust Learning on Heterogeneous
    Datasets via Bucketing <https://arxiv.org/abs/2006.09365>`_, 2020). They copy the
    row that stands out most along the direction in which the honest rows differ most:

    .. math:: i^* = \arg\max_i |z^\top (g_i - \bar g)|, \qquad
        z = \arg\max_{\|z\| = 1} \sum_i (z^\top (g_i - \bar g))^2

    as ``index=None`` does, from the centred Gramian: its first eigenvector has entries
    in proportion. They follow z from step to step; here every step has its own.

    Args:
      honest: rows, (h, \*shape) leaves.
      num_byzantine: f, how many attackers there are.
      key: not used.
      index: which honest row is copied; None for the one that stands out.

    Returns:
      Rows with f in every leaf, all equal.

    Examples:
      >>> import jax.numpy as jnp
      >>> mimic(jnp.array([[1.], [3.]]), 2, index=1).tolist()
      [[3.0], [3.0]]
    """
    del key
    _check.count("num_byzantine", num_byzantine)
    if index is None:
        chosen = jnp.broadcast_to(_outstanding(honest), num_byzantine)
    else:
        _check.count("index", index, minimum=0)
        _check.row_index("index", index, jax.tree.leaves(honest)[0].shape[0])
        chosen = jnp.full(num_byzantine, index)
    return jax.tree.map(lambda leaf: leaf[chosen], honest)


def _outstanding(honest: Tree) -> Array:
    """() int32: which row is largest along the first principal direction."""
    dtype = verbs.decision_dtype(honest)

    def gramian(leaf: Array) -> Array:
        flat = leaf.reshape(leaf.shape[0], -1).astype(dtype)
        centered = flat - flat.mean(0, keepdims=True)
        return jnp.matmul(centered, centered.T, precision="highest")

    _, vectors = jnp.linalg.eigh(sum(map(gramian, jax.tree.leaves(honest))))
    return jnp.argmax(jnp.abs(vectors[:, -1])).astype(jnp.int32)
