"""Momentum of every worker, ahead of the vote."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._rows.finite import cleared, finite_rows, spoiled
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rows.stack import as_rows, checked_weights
from consensus_optax._rows.trees import arrays_of
from consensus_optax._typing import Array, Count, Threshold, Tree


class RowMomentumState(NamedTuple):
    r"""State of :func:`row_momentum`: the one that has an example axis.

    Attributes:
      step: () int32, updates made so far.
      momentum: (num_rows, \*shape) for every floating leaf, float32 at least.
    """

    step: Count
    momentum: Tree


def row_momentum(
    decay: Threshold, num_rows: int
) -> optax.GradientTransformationExtraArgs:
    r"""Worker momentum: every row is replaced by the moving average of its own past.

    Also known as: worker momentum.

    .. math:: m_i \leftarrow \beta m_i + (1 - \beta)\, g_i

    For rows that are the same worker, client or task in every step, not for examples
    drawn anew. Followed by :func:`sign_vote` it is signSGD with majority vote; momentum
    ahead of a robust rule narrows the honest rows' spread.

    Guarantees: rows do not mix; beta = 0 changes nothing.
    Edge cases: the average starts at zero. A row of weight 0 is away: its momentum
    stays as it is. So does that of a row with a non-finite entry, which goes out as nan
    for the reducer to exclude and count.

    ``weights``: which rows are there.

    Args:
      decay: beta in [0, 1): a number, array or schedule.
      num_rows: B. The state holds that many copies of the parameters, the one state in
        this library that grows with the number of rows.

    Returns:
      An example transformation, ahead of a reducer in ``optax.chain``.

    Raises:
      ValueError: a static argument is out of range; when traced, a stack of another
        number of rows.

    Cost: B arrays like the parameters kept; outer products are multiplied out.

    References: Bernstein et al., `signSGD with majority vote is communication
    efficient and fault tolerant <https://arxiv.org/abs/1810.05291>`_, 2018; Karimireddy
    et al., `Learning from history for Byzantine robust optimization
    <https://arxiv.org/abs/2012.10333>`_, 2020.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> tx = optax.chain(co.row_momentum(0.5, num_rows=2), co.mean())
      >>> rows, params = jnp.array([[4.], [0.]]), jnp.zeros(1)
      >>> updates, state = tx.update(rows, tx.init(params), params)
      >>> updates.tolist(), tx.update(rows, state, params)[0].tolist()
      ([1.0], [1.5])
    """
    _check.interval("decay", decay, 0, 1, open_high=True)
    _check.count("num_rows", num_rows)

    def init(params: Tree) -> RowMomentumState:
        def zeros(param: Any) -> Array:
            floating = jnp.issubdtype(param.dtype, jnp.floating)
            shape = (num_rows, *param.shape) if floating else ()
            return jnp.zeros(shape, verbs.decision_dtype(param))

        rows = jax.tree.map(zeros, arrays_of(params))
        return RowMomentumState(jnp.zeros((), jnp.int32), rows)

    def update(
        updates: Tree,
        state: Any,
        params: Tree | None = None,
        *,
        weights: Array | None = None,
        **extra: Any,
    ) -> tuple[Tree, RowMomentumState]:
        del extra
        step = jnp.asarray(optax.safe_increment(state.step))
        leaves, dtype = as_rows(updates, params)
        if not leaves:
            return updates, state._replace(step=step)
        _check_count(leaves, num_rows)
        finite = finite_rows(leaves, dtype)
        moves = finite & (checked_weights(weights, num_rows, dtype) > 0)

        def average(leaf: Any, old: Array) -> Array:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return old
            beta = _check.value_at(decay, state.step, old.dtype)
            if jax.debug_nans.value:  # it would stop at a row that is not taken
                leaf = cleared(leaf, moves)
            new = beta * old + (1 - beta) * verbs.as_array(leaf, old.dtype)
            return jnp.where(_column(moves, new), new, old)

        def outgoing(leaf: Any, average: Array) -> Any:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return leaf
            return spoiled(average.astype(leaf.dtype), finite)

        flat, treedef = jax.tree.flatten(updates, is_leaf=is_outer_product)
        olds = treedef.flatten_up_to(state.momentum)
        news = [average(leaf, old) for leaf, old in zip(flat, olds, strict=True)]
        rows = [outgoing(leaf, new) for leaf, new in zip(flat, news, strict=True)]
        return jax.tree.unflatten(treedef, rows), RowMomentumState(
            step, jax.tree.unflatten(treedef, news)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _column(flags: Array, like: Array) -> Array:
    """(B,) to (B, 1, ...), to go with rows."""
    return flags.reshape(-1, *[1] * (like.ndim - 1))


def _check_count(leaves: list[Any], num_rows: int) -> None:
    """Raises unless B is that of the state."""
    count = leaves[0].shape[0]
    if count != num_rows:
        raise ValueError(
            f"`num_rows` must be the number of rows of the stack; got {num_rows}, but "
            f"the rows are {count}. Pad with rows of weight 0."
        )
