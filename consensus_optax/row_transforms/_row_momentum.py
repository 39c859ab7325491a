"""Momentum of every worker, ahead of the vote."""

from __future__ import annotations

from typing import Any, NamedTuple

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._rows.trees import floating_leaves, refilled
from consensus_optax._rules.kinds import Remembering, Roster
from consensus_optax._running.named import named
from consensus_optax._running.row_transform import RowTransform, row_transform
from consensus_optax._typing import Array, Threshold, Tree
from consensus_optax.row_transforms._row_memory import no_memory_yet, remembered


class RowMomentumState(NamedTuple):
    r"""State of :func:`row_momentum`, which has an example axis.

    Attributes:
      momentum: a tree like the parameters, (num_rows, \*shape) for every floating
        leaf, float32 at least.
    """

    momentum: Tree


@named
def row_momentum(decay: Threshold, num_rows: int) -> RowTransform:
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

    ``weights``: which rows are there. ``clients``: (B,) integers, whose rows these are
    of ``num_rows`` that are remembered; without, row i is i's. Of one that is there
    twice the first row is remembered.

    Args:
      decay: beta in [0, 1): a number, array or schedule.
      num_rows: B. The state holds that many copies of the parameters.

    Returns:
      An example transformation, ahead of a reducer in ``optax.chain``, or in
      :func:`chain` of rows that are in memory.

    Raises:
      ValueError: a static argument is out of range; when traced, a stack of another
        number of rows, or in :func:`chain` rows that are not in memory.

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

    def init(params: Tree, dtype: Any) -> RowMomentumState:
        del dtype
        return RowMomentumState(no_memory_yet(num_rows, params))

    def replace(
        leaves: list[Any], roster: Roster, state: RowMomentumState
    ) -> tuple[list[Any], RowMomentumState]:
        def average(leaf: Any, old: Array, number: int) -> tuple[Array, Array]:
            del number
            beta = _check.value_at(decay, roster.step, old.dtype)
            new = beta * old + (1 - beta) * verbs.as_array(leaf, old.dtype)
            return new.astype(leaf.dtype), new

        clients = roster.extra.get("clients")
        kept = floating_leaves(state.momentum)
        rows, new = remembered(average, leaves, kept, None, roster.weights, clients)
        return rows, RowMomentumState(refilled(state.momentum, new))

    return row_transform(Remembering(replace, init, "row_momentum"))
