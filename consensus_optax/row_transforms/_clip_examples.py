"""Per-example clipping."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import root
from consensus_optax._rules.kinds import Roster, Scaling
from consensus_optax._running.named import named
from consensus_optax._running.row_transform import RowTransform, row_transform
from consensus_optax._typing import PerRow, Threshold


@named
def clip_examples(max_norm: Threshold) -> RowTransform:
    r"""Scales every row down to a norm of at most ``max_norm``, over the whole model.

    Also known as: per-example clipping.

    .. math:: g_i \leftarrow g_i \min(1, c / \|g_i\|)

    (``optax.clip_by_global_norm`` ahead of a reducer takes one norm of the whole
    stack.) Followed by :func:`mean` it is not what differential privacy needs: the mean
    divides by the number of rows that are there and finite, which is data as well.
    :func:`private_sum` is.

    Guarantees: no row is longer than c (to rounding), none changes direction, rows
    shorter than c are unchanged. Outer products stay factored.
    Edge cases: a zero row stays zero. c = 0: all rows zero. A row whose norm is not
    finite becomes nan as a whole, so that the reducer excludes and counts it.

    Args:
      max_norm: the norm c >= 0: a number, array or schedule of the step.

    Returns:
      An example transformation, (B, \*shape) to (B, \*shape), ahead of a reducer in
      ``optax.chain``, or in :func:`chain`, which needs no rows in memory. State:
      ``scaled_share``, the share of the rows there that were made shorter.

    Raises:
      ValueError: ``max_norm`` is negative.

    Cost: the rows' norms; arrays are read twice and written once, of factored rows
    one factor is.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> rule = optax.chain(co.clip_examples(1.0), co.mean())
      >>> rows, params = jnp.array([[0., 4.], [0., 0.5]]), jnp.zeros(2)
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [0.0, 0.75]
    """
    _check.interval("max_norm", max_norm, 0)

    def factors(squared_norms: PerRow, roster: Roster) -> PerRow:
        norms = root(squared_norms)
        limit = _check.value_at(max_norm, roster.step, norms.dtype)
        longer = norms > limit
        return jnp.where(longer, limit / jnp.where(longer, norms, 1), 1)

    return row_transform(Scaling(factors))
