"""The coordinate-wise winsorized mean."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.kinds import Columns
from consensus_optax._rules.order_statistics import order_statistics, total
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array


@named
def winsorized_mean(quantile: float) -> Reducer:
    r"""Coordinate-wise winsorized mean: extremes are pulled in, not dropped.

    Also known as: winsorized SGD.

    .. math:: u_p = \frac1n \sum_i
        \min(\max(g_{ip},\, g_{(k+1) p}),\, g_{(n-k) p}), \qquad k = \lfloor q n \rfloor

    with :math:`g_{(1) p} \le \dots \le g_{(n) p}` and q = ``quantile``: the k smallest
    entries become the next one up, the k largest the next one down. (Quantiles that
    interpolate between entries would let a single row of any size through.)

    Guarantees: the order of the rows is irrelevant, whoever ties; shifting all rows
    shifts the update, scaling them scales it, by any number; each coordinate lies
    between the smallest and the largest entry of any n - k rows, so k arbitrary rows
    cannot move it out of the others' range.
    Edge cases: q n < 1 is the mean. No row: zero, not ready.
    ``weights``: each row counts as one for what is pulled in; the mean is weighted.

    Args:
      quantile: q, fraction of the rows at each end, in [0, 0.5); 0.29 of 100 rows are
        29, whatever the product rounds to.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: ``quantile`` is out of range or not known when traced.

    Cost: rows are multiplied out, one leaf at a time; B log(B)^2 / 2 comparisons for
    every coordinate, beyond 64 rows 64 B additions.

    References: Chatterjee, `Coherent Gradients: An Approach to Understanding
    Generalization in Gradient Descent-based Optimization
    <https://arxiv.org/abs/2002.10657>`_, 2020.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = winsorized_mean(0.25), jnp.zeros(1)
      >>> rows = jnp.array([[1.], [2.], [4.], [-90.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [1.5]
    """
    _check.static_number("quantile", quantile, 0, 0.5, open_high=True)

    def reduce(rows: Array, weights: Array) -> Array:
        table = [_floor(quantile * n) for n in range(rows.shape[0] + 1)]

        def ends(count: Any) -> tuple[Any, Any]:
            pulled = (
                table[count]
                if isinstance(count, int)
                else jnp.array(table, jnp.int32)[count]
            )
            return pulled, count - 1 - pulled

        low, high = order_statistics(rows, weights > 0, ends)
        moved = total(lambda i, row: weights[i] * jnp.clip(row, low, high), rows)
        mass = weights.sum()
        return jnp.where(mass > 0, moved / positive_or_one(mass), 0)

    return reducer(Columns(reduce))


def _floor(number: float) -> int:
    """The integer below, where a number short of one by rounding is that one."""
    return math.floor(number * (1 + 1e-9))
