"""Centered clipping: how far any row can pull the previous update is bounded."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._rows.varying import varying_like
from consensus_optax._rules.arithmetic import root
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import (
    Array,
    Bordered,
    Number,
    PerWeight,
    Threshold,
    Tree,
)


class CenteredClippingState(NamedTuple):
    """What was clipped in the last step.

    Attributes:
      clipped_share: () float32, share of the weight whose pull was shortened in the
        last iteration.
    """

    clipped_share: Number


@named
def centered_clipping(max_distance: Threshold, iterations: int = 1) -> Reducer:
    r"""Centered clipping: move the previous update by the clipped pulls of the rows.

    Also known as: CCLIP, centred clipping.

    .. math:: v \leftarrow v + \frac1n \sum_i (g_i - v)
        \min\left(1, \frac{\tau}{\|g_i - v\|}\right)

    ``iterations`` times, from the previous update; that is zero at first.

    Guarantees: the order of the rows is irrelevant; scaling rows, tau and the previous
    update scales the update, by any positive number. Each iteration moves by at most
    tau, and f rows in place of f others change that by at most 2 tau f / n.
    Edge cases: tau as large as all distances: the mean. A row equal to v pulls at
    nothing. No row: zero, not ready, and that is the next step's start.
    ``weights``: sample counts: a row of weight 2 is two equal rows.

    Args:
      max_distance: tau > 0: a number, array or schedule; about the distance of honest
        rows from their mean.
      iterations: clipped steps for each update; the paper needs one, since rows change
        little from step to step.

    Returns:
      A :class:`Reducer`. It remembers the previous update (an array for each
      parameter); ``clipped_share`` is in its state.

    Raises:
      ValueError: a static argument is out of range.

    Cost: one Gramian (two if rows are nearly equal) and one product of the rows with
    the previous update, O(B^2) for each iteration, one combination.

    References: Karimireddy et al., `Learning from History for Byzantine Robust
    Optimization <https://arxiv.org/abs/2012.10333>`_, 2020.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = centered_clipping(2.0), jnp.zeros(1)
      >>> rows, state = jnp.array([[1.], [2.], [3.], [90.]]), rule.init(params)
      >>> update, state = rule.update(rows, state, params)
      >>> update.tolist()
      [1.75]
      >>> rule.update(rows, state, params)[0].tolist()
      [2.4375]
    """
    _check.interval("max_distance", max_distance, 0, open_low=True)
    _check.count("iterations", iterations)

    def init(params: Tree, dtype: Any) -> CenteredClippingState:
        del params, dtype
        return CenteredClippingState(jnp.zeros((), jnp.float32))

    def weigh(
        products: Bordered, roster: Roster, state: CenteredClippingState
    ) -> tuple[PerWeight, CenteredClippingState]:
        del state
        limit = _check.value_at(max_distance, roster.step, products.dtype)
        shares = jnp.append(roster.shares, 0)  # the previous update pulls at nothing

        def step(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            v, _ = carry
            product = products @ v
            squares = v @ product - 2 * product + products.diagonal()
            length = root(squares)
            longer = length > limit
            pull = shares * jnp.where(longer, limit / jnp.where(longer, length, 1), 1)
            return v + pull - pull.sum() * v, jnp.where(longer, shares, 0).sum()

        last = shares.shape[0] - 1
        start = jax.nn.one_hot(last, shares.shape[0], dtype=shares.dtype)
        begin = varying_like((start, start[0]), products, shares)
        v, clipped = lax.fori_loop(0, iterations, step, begin)
        return v, CenteredClippingState(clipped.astype(jnp.float32))

    return reducer(Weighting(weigh, init, reads=Reads.AFFINE, remembers=True))
