"""All rows times a number."""

from __future__ import annotations

from consensus_optax import _check
from consensus_optax._rules.kinds import Reads, Roster, Scaling
from consensus_optax._running.named import named
from consensus_optax._running.row_transform import RowTransform, row_transform
from consensus_optax._typing import Number, Threshold


@named
def scale_examples(factor: Threshold) -> RowTransform:
    r"""Multiplies every row by one number, as ``optax.scale`` does an update.

    .. math:: g_i \leftarrow c\, g_i

    To undo the scale of a loss, for one, before a rule whose thresholds are lengths.
    (``optax.scale`` ahead of a reducer would scale both factors of an outer product,
    which is an error.)

    Guarantees: outer products stay factored; dtypes stay.
    Edge cases: a row that is not finite stays so, whatever the factor, and the reducer
    excludes and counts it.

    Args:
      factor: c: a number, array or schedule of the step.

    Returns:
      A row transformation, (B, \*shape) to (B, \*shape), ahead of a reducer in
      ``optax.chain``, or in :func:`chain`, which needs no rows in memory.

    Raises:
      ValueError: ``factor`` is no number; when traced, as the reducer does.

    Cost: arrays are read and written once, of factored rows the smaller factor is.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> rule = optax.chain(co.scale_examples(0.5), co.mean())
      >>> rows, params = jnp.array([[2., 4.], [4., 0.]]), jnp.zeros(2)
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [1.5, 1.0]
    """
    _check.interval("factor", factor)

    def factors(products: None, roster: Roster) -> Number:
        del products
        return _check.value_at(factor, roster.step, roster.weights.dtype)

    return row_transform(Scaling(factors, reads=Reads.NOTHING))
