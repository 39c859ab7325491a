"""The coordinate-wise median."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax._rules.arithmetic import SLACK
from consensus_optax._rules.kinds import Columns
from consensus_optax._rules.order_statistics import (
    if_all,
    smallest_reaching,
)
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array


@named
def median() -> Reducer:
    r"""Coordinate-wise median: in every coordinate the middle entry of the rows.

    Also known as: CwMed, coordinate-wise median, marginal median.

    .. math:: u_p = \tfrac12 \left( g_{(\lceil n/2 \rceil) p}
        + g_{(\lfloor n/2 \rfloor + 1) p} \right)

    with :math:`g_{(1) p} \le \dots \le g_{(n) p}`: the mean of the two middle entries
    if n is even.

    Guarantees: the order of the rows is irrelevant; shifting all rows shifts the
    update, scaling them scales it, by any number; each coordinate lies between the
    smallest and the largest entry of any majority of the rows, so fewer than n / 2
    arbitrary rows cannot move it out of the others' range.
    Edge cases: no row: zero, not ready. The update need not lie in the convex hull of
    the rows.
    ``weights``: sample counts. A row of weight 2 is two equal rows: the middle is where
    half of the weight lies on either side; the mean of two entries where a half is
    reached exactly (to a millionth of it).

    Returns:
      A :class:`Reducer`.

    Cost: rows are multiplied out, one leaf at a time; B log(B)^2 / 2 comparisons for
    every coordinate, beyond 64 rows or with unequal weights 64 B additions.

    References: Yin et al., `Byzantine-Robust Distributed Learning: Towards Optimal
    Statistical Rates <https://arxiv.org/abs/1803.01498>`_, 2018 (Definition 1).

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = median(), jnp.zeros(2)
      >>> rows, state = jnp.array([[1., 9.], [2., 5.], [90., 4.]]), rule.init(params)
      >>> rule.update(rows, state, params)[0].tolist()
      [2.0, 5.0]
      >>> weights = jnp.array([1., 0., 3.])
      >>> rule.update(rows, state, params, weights=weights)[0].tolist()
      [90.0, 4.0]
    """
    return reducer(Columns(middle))


def middle(rows: Array, weights: Array) -> Array:
    """The weighted median of every coordinate: (B, P) and (B,) to (P,)."""

    def by_weight() -> list[Array]:
        half = weights.sum() / 2
        return smallest_reaching(
            rows, weights, [half * (1 - SLACK), half * (1 + SLACK)]
        )

    equal = weights == jnp.where(weights[0] > 0, weights[0], -1)
    return halfway(*if_all(equal, rows, middle_ranks(rows.shape[0]), by_weight))


def middle_ranks(count: Any) -> tuple[Any, Any]:
    """The ranks of the two middle entries of ``count``, one twice if it is odd."""
    return (count - 1) // 2, count // 2


def halfway(lower: Array, upper: Array) -> Array:
    """The mean of two numbers, exact if they are equal."""
    return lower + (upper - lower) / 2
