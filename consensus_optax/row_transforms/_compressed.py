"""Rows as they arrive when they are sent in fewer bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consensus_optax._rows.finite import cleared, finite_rows, spoiled
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rows.stack import as_rows
from consensus_optax._typing import AxisName, Count, Tree
from consensus_optax.compressors._compressor import Compressor, checked_compressor
from consensus_optax.row_transforms._compression import (
    checked_axes,
    compressed_leaf,
    row_keys,
)
from consensus_optax.row_transforms._row_memory import checked_clients


class CompressedState(NamedTuple):
    """State of :func:`compressed`.

    Attributes:
      step: () int32, updates made so far.
    """

    step: Count


def compressed(
    compressor: Compressor, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Every row is compressed and decompressed, leaf by leaf, as one sends it.

    Also known as: quantized SGD, sparsified SGD.

    .. math:: g_i \leftarrow C(g_i)

    What a compressor makes of training, of any rule and of attacks, without a network:
    ``compressor.num_bytes(params)`` is what one row would take. To send less between
    devices, ``co.sharded(..., wire=compressor)`` compresses what it deals out.

    Guarantees: rows do not mix; row i of step t, in leaf l, draws with
    ``fold_in(fold_in(fold_in(key, t), i), l)``, so never twice with the same.
    Edge cases: a row with a non-finite entry goes out as nan, so that the reducer
    excludes and counts it; a row that is finite and is not any more once decompressed
    is the same to it. Rows go out in float32, since rounding them to a narrower dtype
    would be another loss; what was float64 has float32's range. Of biased compressors
    something is lost for good: :func:`error_feedback` keeps it.

    ``clients`` of ``update``: (B,) integers that are folded in rather than row numbers,
    on a mesh, too, where they are told apart by that alone.

    Args:
      compressor: one of ``co.compressors``.
      axis_name: inside of ``jax.shard_map``, the mesh axes that rows are sharded along,
        where something is drawn; () where every device has the same rows.

    Returns:
      A row transformation, (B, \*shape) to (B, \*shape), ahead of a reducer in
      ``optax.chain``.

    Raises:
      ValueError: ``compressor`` is none; when traced, ``axis_name`` is needed, or
        ``clients`` are not an integer for every row.

    Cost: the compressor's, of every row. Outer products are multiplied out, except by
    ``low_rank``, whose rows are outer products.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> rule = optax.chain(co.compressed(co.compressors.top_k(0.5)), co.mean())
      >>> rows, params = jnp.array([[4., 1.], [0., 2.]]), jnp.zeros(2)
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [2.0, 1.0]
    """
    checked_compressor("compressor", compressor)

    def init(params: Tree) -> CompressedState:
        del params
        return CompressedState(jnp.zeros((), jnp.int32))

    def update(
        updates: Tree,
        state: Any,
        params: Tree | None = None,
        *,
        clients: Any = None,
        **extra: Any,
    ) -> tuple[Tree, CompressedState]:
        del extra
        leaves, dtype = as_rows(updates, params)
        step = jnp.asarray(optax.safe_increment(state.step))
        if not leaves:
            return updates, CompressedState(step)
        num_rows = leaves[0].shape[0]
        whose = checked_clients(clients, num_rows)
        axes = checked_axes(compressor, axis_name) if whose is None else ()
        keys = row_keys(compressor, state.step, axes, num_rows, whose)
        finite = finite_rows(leaves, dtype)
        flat, treedef = jax.tree.flatten(updates, is_leaf=is_outer_product)
        new: list[Any] = []
        number = 0
        for leaf in flat:
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                row = compressed_leaf(compressor, cleared(leaf, finite), keys, number)
                leaf, number = spoiled(row, finite), number + 1
            new.append(leaf)
        return jax.tree.unflatten(treedef, new), CompressedState(step)

    return optax.GradientTransformationExtraArgs(init, update)
