"""What compressing a row loses is added to the next one of the same row."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._rows.stack import as_rows
from consensus_optax._rows.trees import arrays_of, leaf_name
from consensus_optax._rows.verbs import Leaf
from consensus_optax._typing import Array, AxisName, Count, Tree
from consensus_optax.compressors._compressor import Compressor, checked_compressor
from consensus_optax.row_transforms._compression import (
    checked_axes,
    compressed_leaf,
    row_keys,
)
from consensus_optax.row_transforms._row_memory import (
    checked_clients,
    no_memory_yet,
    remembered,
)


class ErrorFeedbackState(NamedTuple):
    r"""State of :func:`error_feedback`, which has an axis of rows or of clients.

    Attributes:
      step: () int32, updates made so far.
      error: (num_rows, \*shape) for every floating leaf, float32 at least: what has not
        been sent yet.
    """

    step: Count
    error: Tree


def error_feedback(
    compressor: Compressor, num_rows: int, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Compresses every row with what was lost of it before: nothing is lost for good.

    Also known as: EF-SGD, EF-signSGD, error compensation, residual accumulation.

    .. math:: p_i = g_i + e_i, \qquad g_i \leftarrow C(p_i), \qquad e_i \leftarrow p_i -
        C(p_i)

    For rows that are the same worker or client in every step, as those of
    :func:`row_momentum`. With :func:`mean` after it SGD converges at the rate of SGD,
    whatever contraction C is, of every leaf. The learning rate comes after the reducer,
    so e is in units of gradients: with a rate that changes from step to step, divide
    rows by the next rate ahead of it.

    Guarantees: all rows that went out, and e, add up to all rows that came in, to
    rounding; in the mean :math:`E \|e\|^2 \le 4 (1 - \delta) / \delta^2 \max \|g\|^2`
    for a contraction with delta, and :math:`\|e\|_\infty \le c / (1 - c) \max
    \|g\|_\infty` for one by c of the largest entry. Rows do not mix, and draw as
    :func:`compressed` says.
    Edge cases: e starts at zero. A row of weight 0, of no client, or with a non-finite
    entry leaves its e as it is, bit for bit; the latter goes out as nan for the reducer
    to exclude and count, and so does a row whose sum with e overflows.

    ``weights`` of ``update``: which rows are there. ``clients``: (B,) integers, whose
    rows these are of ``num_rows`` that are remembered; without, row i is i's. Of one
    that is there twice the first row is remembered; what the second loses is lost.

    Args:
      compressor: a contraction: any of ``co.compressors`` but ``random_k`` with
        ``rescale``, and levels of a fixed range; and, of leaves that are large for
        their bits, levels of the norm, or 2 bits of the largest entry.
      num_rows: rows, or clients, that have an e: so many copies of the parameters.
      axis_name: as for :func:`compressed`; the state is then this device's.

    Returns:
      A row transformation, (B, \*shape) to (B, \*shape), ahead of a reducer in
      ``optax.chain``. Rows go out in float32 at least.

    Raises:
      ValueError: ``compressor`` is none, or no contraction; ``num_rows`` is no count;
        in ``init``, it is none of a leaf; when traced, as :func:`row_momentum` and
        :func:`compressed` do.

    Cost: the compressor's, and ``num_rows`` arrays like the parameters kept; outer
    products are multiplied out.

    References: Karimireddy et al., `Error Feedback Fixes SignSGD and other Gradient
    Compression Schemes <https://arxiv.org/abs/1901.09847>`_, 2019; Seide et al.,
    1-Bit Stochastic Gradient Descent, Interspeech 2014.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> code = co.compressors.top_k(0.5)
      >>> tx = optax.chain(co.error_feedback(code, num_rows=1), co.mean())
      >>> rows, params = jnp.array([[3., 2.]]), jnp.zeros(2)
      >>> updates, state = tx.update(rows, tx.init(params), params)
      >>> updates.tolist(), tx.update(rows, state, params)[0].tolist()
      ([3.0, 0.0], [0.0, 4.0])
    """
    checked_compressor("compressor", compressor)
    if compressor.contraction is None:
        wanted = "a contraction, or errors grow without bound"
        hint = ". Use `rescale=False` of random_k, or a `scale` that follows the array"
        _check.fail("compressor", wanted, compressor, hint)
    _check.count("num_rows", num_rows)

    def init(params: Tree) -> ErrorFeedbackState:
        _check_contracts(compressor, params)
        start = jnp.zeros((), jnp.int32)
        return ErrorFeedbackState(start, no_memory_yet(num_rows, params))

    def update(
        updates: Tree,
        state: Any,
        params: Tree | None = None,
        *,
        weights: Array | None = None,
        clients: Any = None,
        **extra: Any,
    ) -> tuple[Tree, ErrorFeedbackState]:
        del extra
        axes, (leaves, _) = (
            checked_axes(compressor, axis_name),
            as_rows(updates, params),
        )
        given = leaves[0].shape[0] if leaves else 0
        clients = checked_clients(clients, given) if leaves else None

        def turn(leaf: Leaf, old: Array, number: int) -> tuple[Leaf, Array]:
            num_kept = old.shape[0] if clients is None else num_rows
            keys = row_keys(compressor, state.step, axes, given, clients, num_kept)
            due = verbs.as_array(leaf, old.dtype) + old
            sent = compressed_leaf(compressor, due, keys, number)
            return sent, due - verbs.as_array(sent, old.dtype)

        rows, error = remembered(
            turn, updates, state.error, params, weights, clients, can_overflow=True
        )
        step = jnp.asarray(optax.safe_increment(state.step))
        return rows, ErrorFeedbackState(step, error)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_contracts(compressor: Compressor, params: Tree) -> None:
    """Raises where nothing bounds what is left over of a leaf."""
    delta = compressor.contraction
    if compressor.largest is not None or delta is None:
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays_of(params)):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not delta(leaf.shape) > 0:
            raise ValueError(
                "`compressor` must be a contraction of every leaf, or errors grow "
                f"without bound; {compressor} is none of {leaf_name(path)}, "
                f"{leaf.shape}. Cut it into smaller pieces by "
                "`co.compressors.bucketed`, or take more bits."
            )
