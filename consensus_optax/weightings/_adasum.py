"""Adaptive summation: orthogonal rows add up, parallel ones are averaged."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array


@named
def adasum() -> Reducer:
    r"""AdaSum: pairs of rows summed less what they have in common, in a binary tree.

    Also known as: AdaSum, adaptive summation.

    .. math:: \mathrm{AdaSum}(a, b) = \Big(1 - \frac{\langle a, b\rangle}{2 \|a\|^2}
        \Big) a + \Big(1 - \frac{\langle a, b\rangle}{2 \|b\|^2}\Big) b

    of rows 1 and 2, 3 and 4, ..., then of these results, and so on. Every result is a
    combination of rows, so the tree is climbed on coefficients and the Gramian.

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

    Cost: the Gramian, O(B^3) on it, one combination.

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

    def weigh(gramian: Array, roster: Roster, state: Any) -> tuple[Array, Any]:
        count = roster.weights.shape[0]
        order = jnp.argsort(~roster.present, stable=True)  # the absent ones last
        nodes = jnp.eye(count, dtype=gramian.dtype)[order]
        nodes *= roster.present[order][:, None].astype(gramian.dtype)
        while nodes.shape[0] > 1:
            if nodes.shape[0] % 2:
                nodes = jnp.concatenate([nodes, jnp.zeros_like(nodes[:1])])
            left, right = nodes[0::2], nodes[1::2]
            common = _inner(left, gramian, right)
            nodes = _less(left, common, gramian) + _less(right, common, gramian)
        return _less(nodes, jnp.zeros_like(nodes[:, 0]), gramian)[0], state

    return reducer(Weighting(weigh))


def _inner(x: Array, gramian: Array, y: Array) -> Array:
    """Inner products of combinations of rows, pair by pair, (n,)."""
    return (jnp.matmul(x, gramian, precision=lax.Precision.HIGHEST) * y).sum(1)


def _less(node: Array, common: Array, gramian: Array) -> Array:
    """The node less half of what it has in common with its partner.

    A node whose rows cancel to rounding is zero: it has no direction to compare with.
    """
    squared = _inner(node, gramian, node)
    bound = (jnp.abs(node) * jnp.sqrt(gramian.diagonal())[None, :]).sum(1)
    moving = squared > 8 * jnp.finfo(squared.dtype).eps * bound**2
    share = jnp.where(moving, 1 - common / jnp.where(moving, squared, 1) / 2, 0)
    return share[:, None] * node
