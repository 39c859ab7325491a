"""Per-example normalization."""

from __future__ import annotations

from consensus_optax._rules.arithmetic import positive_or_one, root
from consensus_optax._rules.kinds import Roster, Scaling
from consensus_optax._running.named import named
from consensus_optax._running.row_transform import RowTransform, row_transform
from consensus_optax._typing import PerRow


@named
def normalize_examples() -> RowTransform:
    r"""Scales every row to norm 1 over the whole model, so that each has one vote.

    Also known as: per-example normalization.

    .. math:: g_i \leftarrow g_i / \|g_i\|

    Guarantees: every row has norm 1 (to rounding) or is zero; outer products stay
    factored.
    Edge cases: a zero row stays zero. A row whose norm is not finite becomes nan as a
    whole, so that the reducer excludes and counts it. A row of any finite
    size has a norm, also where its square is no float, whatever the others are.

    Returns:
      An example transformation, (B, \*shape) to (B, \*shape), ahead of a reducer in
      ``optax.chain``, or in :func:`chain`, which needs no rows in memory.

    Cost: the rows' norms, twice where the square of one is no float, or 0; arrays are
    read twice and written once, of factored rows one factor is.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> rule = optax.chain(co.normalize_examples(), co.mean())
      >>> rows, params = jnp.array([[2., 0.], [0., 9.]]), jnp.zeros(2)
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [0.5, 0.5]
    """

    def factors(squared_norms: PerRow, roster: Roster) -> PerRow:
        del roster
        return 1 / positive_or_one(root(squared_norms))

    return row_transform(Scaling(factors, degree=-1))
