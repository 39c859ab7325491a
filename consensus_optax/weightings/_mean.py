"""The weighted mean of the rows: what plain training does."""

from __future__ import annotations

from consensus_optax._rules.kinds import Reads, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer


@named
def mean() -> Reducer:
    r"""The mean of the rows, the baseline of every comparison.

    Also known as: average, averaging, FedAvg.

    .. math:: u = \sum_i w_i g_i / \sum_i w_i

    A weighting rather than a fold, though sums merge too: of factored rows it is one
    ordinary matrix product, as in the plain backward pass.

    Guarantees: linear in the rows; in their convex hull; order is irrelevant.
    Edge cases: no row: zero, not ready.
    ``weights``: sample counts; the mean is weighted by them.

    Returns:
      A :class:`Reducer`.

    Cost: one pass over the rows; for factored rows that of the plain gradient.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = mean(), jnp.zeros(2)
      >>> rows, state = jnp.array([[1., 2.], [3., 4.]]), rule.init(params)
      >>> rule.update(rows, state, params)[0].tolist()
      [2.0, 3.0]
      >>> rule.update(rows, state, params, weights=jnp.array([1., 3.]))[0].tolist()
      [2.5, 3.5]
    """
    return reducer(
        Weighting(
            lambda _, roster, state: (roster.shares, state),
            reads=Reads.NOTHING,
            apart="share",
        )
    )
