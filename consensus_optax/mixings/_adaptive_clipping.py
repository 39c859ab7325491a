"""Adaptive robust clipping: the longest rows are cut to the length of the next."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import root
from consensus_optax._rules.distances import rows_and_bad
from consensus_optax._rules.kinds import Roster, Scaling
from consensus_optax._running.named import named
from consensus_optax._typing import PerRow


@named
def adaptive_clipping(num_byzantine: int) -> Scaling:
    r"""Adaptive robust clipping (ARC): the k longest rows become as long as the next.

    Also known as: ARC, adaptive robust clipping.

    .. math:: g_i \leftarrow g_i \min\left(1, \frac{c}{\|g_i\|}\right), \qquad
        k = \left\lfloor 2 \frac{f}{n} (n - f) \right\rfloor

    where c is the norm of the (k + 1)-th longest row, over the whole model. Unlike a
    fixed limit it keeps the guarantees of the robust rule that follows.

    Guarantees: no row changes direction or gets longer; n - k rows are unchanged; the
    order of the rows is irrelevant to a rule to which it is; scaling all rows scales
    the clipped ones.
    Edge cases: ``num_byzantine=0``: nothing is clipped. A zero row stays zero. Fewer
    than 2f + 1 rows present: f becomes (n - 1) // 2 (which loses nothing if absent rows
    are arbitrary ones, as rows with an inf or a nan are).
    ``weights``: each row counts as one, and keeps its weight.

    Args:
      num_byzantine: f, the largest number of arbitrary rows.

    Returns:
      What scales rows, for ``co.after`` and ``co.chain``: they stay factored, and none
      is held for it.

    Raises:
      ValueError: ``num_byzantine`` is no count; when traced, n > 2f does not hold: the
        honest rows must be a majority.

    Cost: the rows' norms.

    References: Allouah et al., `Adaptive Gradient Clipping for Robust Federated
    Learning <https://arxiv.org/abs/2405.14432>`_, 2024.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> rule = co.after(co.adaptive_clipping(1), co.mean())
      >>> rows, params = jnp.array([[1.], [2.], [3.], [-64.]]), jnp.zeros(1)
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [0.75]
    """
    _check.count("num_byzantine", num_byzantine, minimum=0)

    def factors(squared_norms: PerRow, roster: Roster) -> PerRow:
        n, bad = rows_and_bad(roster.present, num_byzantine)
        clipped = 2 * bad * (n - bad) // jnp.maximum(n, 1)
        norms = root(squared_norms)
        ascending = jnp.sort(jnp.where(roster.present, norms, jnp.inf))
        limit = ascending[jnp.clip(n - 1 - clipped, 0, norms.shape[0] - 1)]
        longer = norms > limit
        return jnp.where(longer, limit / jnp.where(longer, norms, 1), 1)

    return Scaling(factors, degree=0, apart=False)
