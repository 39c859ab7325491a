"""The mean of the rows' directions."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax._rules.arithmetic import root
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import PerRow


@named
def normalized_mean() -> Reducer:
    r"""The mean of unit-normalized rows, over the whole model.

    Also known as: uniform mean of unit rows.

    .. math:: u = \sum_i w_i \frac{g_i}{\|g_i\|} / \sum_i w_i

    The baseline that any table with :func:`subspace_weighting` must have: on its
    authors' own problem it explains the whole gain over the mean.

    Guarantees: :math:`\|u\| \le 1`; unchanged if any row is scaled by a positive
    number, also to where its square is no float; order is irrelevant. A learning rate
    for plain SGD does not carry over.
    Edge cases: a zero row counts in the divisor and adds nothing. All zero: zero.
    ``weights``: sample counts.

    Returns:
      A :class:`Reducer`.

    Cost: the rows' norms, twice where the square of one is no float, or 0, and
    one combination; in microbatches one pass over the rows.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = normalized_mean(), jnp.zeros(2)
      >>> rows = jnp.array([[2., 0.], [0., 9.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [0.5, 0.5]
    """

    def weigh(squared_norms: PerRow, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        norms = root(squared_norms)
        moving = norms > 0
        return jnp.where(moving, roster.shares / jnp.where(moving, norms, 1), 0), state

    return reducer(Weighting(weigh, reads=Reads.NORMS, degree=-1, apart="share"))
