"""Adaptive summation: orthogonal rows add up, parallel ones are averaged."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from consensus_optax._rules.arithmetic import root
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, Gramian, PerRow


@named
def adasum() -> Reducer:
    r"""AdaSum: pairs of rows summed less what they have in common, in a binary tree.

    Also known as: AdaSum, adaptive summation.

    .. math:: \mathrm{AdaSum}(a, b) = \Big(1 - \frac{\langle a, b\rangle}{2 \|a\|^2}
        \Big) a + \Big(1 - \frac{\langle a, b\rangle}{2 \|b\|^2}\Big) b

    of rows 1 and 2, 3 and 4, ..., then of these results, and so on. Every result is a
    combination of rows, so the tree is climbed on the Gramian, which halves.

    Guarantees: rows orthogonal to each other: their sum; equal rows: that row; scaling
    all rows scales the update. NOT invariant to the order of the rows, for three or
    more: the tree has one.
    Edge cases: the rows present are paired in their order, as if the others were not;
    one without a partner goes up as it is, like one whose partner is zero; what
    cancels to rounding is zero. The update
    may be as long as the sum of the rows: a learning rate for their mean is for rows
    that agree.

    ``weights``: only whether they are 0 matters.

    Differs from the authors' code, which takes every parameter by itself: for that,
    ``co.per_leaf(co.adasum())``.

    Returns:
      A :class:`Reducer`.

    Cost: the Gramian and one copy of it, O(B^2) on these, one combination.

    References: Maleki et al., `Scaling distributed training with adaptive summation
    <https://arxiv.org/abs/2006.02924>`_, 2020; the code in Horovod.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = adasum(), jnp.zeros(2)
      >>> for rows in ([[1., 0.], [0., 2.]], [[1., 0.], [1., 0.]]):
      ...     print(rule.update(jnp.array(rows), rule.init(params), params)[0])
      [1. 2.]
      [1. 0.]
    """

    def weigh(gramian: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        order = jnp.argsort(~roster.present, stable=True)  # the absent ones last
        there = roster.present[order].astype(gramian.dtype)
        lengths = there * root(gramian.diagonal()[order])
        nodes = _Nodes(gramian[order][:, order], lengths, there)
        rows = 1
        while nodes.products.shape[0] > 1:
            nodes, rows = _merged(nodes, rows), 2 * rows
        weights = nodes.weights * _shares(nodes, jnp.zeros_like(nodes.bounds))
        return jnp.zeros_like(weights).at[order].set(weights), state

    return reducer(Weighting(weigh, degree=0))


class _Nodes(NamedTuple):
    """The n nodes of one level of the tree; a row is in one of them.

    Attributes:
      products: (n, n) inner products of the nodes.
      bounds: (n,) what the nodes' lengths would be if nothing cancelled.
      weights: (B,) of every row in its node.
    """

    products: Array
    bounds: Array
    weights: Array


def _merged(nodes: _Nodes, rows: int) -> _Nodes:
    """The level above: pairs, each less half of what it has in common.

    ``rows``: how many rows a node of this level is made of.
    """
    odd = nodes.products.shape[0] % 2
    products, bounds = (
        jnp.pad(nodes.products, (0, odd)),
        jnp.pad(nodes.bounds, (0, odd)),
    )
    even = nodes._replace(products=products, bounds=bounds)
    half, count = bounds.shape[0] // 2, nodes.weights.shape[0]
    shares = _shares(even, jnp.repeat(products.diagonal(1)[::2], 2))
    apart = shares[:, None] * products * shares[None, :]
    of_rows = jnp.repeat(shares, rows, total_repeat_length=count)
    return _Nodes(
        apart.reshape(half, 2, half, 2).sum((1, 3)),
        (jnp.abs(shares) * bounds).reshape(half, 2).sum(1),
        nodes.weights * of_rows,
    )


def _shares(nodes: _Nodes, common: Array) -> Array:
    """What is left of a node, (n,), given what each has in common with its partner.

    A node whose rows cancel to rounding is zero: it has no direction to compare with.
    """
    squared = nodes.products.diagonal()
    moving = squared > 8 * jnp.finfo(squared.dtype).eps * nodes.bounds**2
    return jnp.where(moving, 1 - common / jnp.where(moving, squared, 1) / 2, 0)
