"""Only the rows of smallest loss count."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, PerRow, Threshold


@named
def keep_smallest_losses(num_kept: Threshold) -> Reducer:
    r"""Min-k loss (top-k training): the mean of the k rows whose loss is smallest.

    Also known as: min-k loss, top-k training, small-loss selection.

    .. math:: u = \sum_{i \in K} w_i g_i \Big/ \sum_{i \in K} w_i, \qquad
        K = \text{the } k \text{ rows of smallest } f_i

    The losses come as an extra argument, ``update(rows, state, params, values=values)``
    with ``values`` (B,) as :func:`per_example_value_and_grad` gives them. As a
    selector, ``co.among(co.keep_smallest_losses(k), rule)``.

    Guarantees: in the convex hull of the rows; the order of the rows is irrelevant
    (equal losses: the first rows).
    Edge cases: k rows or fewer: their mean. A row whose loss is not finite is left
    out.

    ``weights``: what the mean is weighted by.

    Args:
      num_kept: k >= 1: a number, array, or schedule, such as one that lowers it.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: ``num_kept`` is out of range; when traced, ``values`` is missing or
        not (B,).

    Cost: that of the mean; O(B log B) for the decision.

    References: Sinha et al., `Top-k training of GANs
    <https://arxiv.org/abs/2002.06224>`_, 2020; Shah et al., `Choosing the sample with
    lowest loss makes SGD robust <https://arxiv.org/abs/2001.03316>`_, 2020.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = keep_smallest_losses(2), jnp.zeros(1)
      >>> rows, values = jnp.array([[1.], [2.], [3.]]), jnp.array([.5, 9., .1])
      >>> rule.update(rows, rule.init(params), params, values=values)[0].tolist()
      [2.0]
    """
    _check.interval("num_kept", num_kept, 1)

    def weigh(_: Any, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        values = row_values(roster)
        candidate = roster.present & jnp.isfinite(values)
        order = jnp.argsort(jnp.where(candidate, values, jnp.inf), stable=True)
        rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))
        kept = candidate & (
            rank.astype(values.dtype)
            < _check.value_at(num_kept, roster.step, values.dtype)
        )
        mass = jnp.where(kept, roster.weights, 0)
        return mass / jnp.where(kept.any(), mass.sum(), 1), state

    return reducer(Weighting(weigh, reads=Reads.NOTHING))


def row_values(roster: Roster) -> Array:
    """The losses of the rows, (B,), from the extra arguments of ``update``."""
    values, count = roster.extra.get("values"), roster.weights.shape[0]
    if values is None:
        raise ValueError(
            "`values` must be the losses of the rows, an array of shape (B,), passed "
            "as `update(rows, state, params, values=values)`; got None. "
            "`co.per_example_value_and_grad` gives them with the rows."
        )
    hint = ". Of a dict of losses it is `jnp.stack(jax.tree.leaves(losses))`."
    values = _check.array("values", values, "an array (B,) of losses", hint)
    if values.shape != (count,):
        raise ValueError(
            f"`values` must have shape ({count},), one loss for every row; got "
            f"{values.shape}"
        )
    return values.astype(roster.weights.dtype)
