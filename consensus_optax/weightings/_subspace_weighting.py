"""Adaptive Consensus: weights in the subspace that the rows span."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import root
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import (
    Array,
    Flag,
    Gramian,
    Marked,
    PerRow,
    Threshold,
    Tree,
)

_EPS = 1e-8  # the authors' constant, added to norms
_LEAST_SUM = 1e-3  # of the coefficients' sum, relative to the sum of their magnitudes


class SubspaceState(NamedTuple):
    """State of the weighting; a leading axis over leaves by leaf.

    Attributes:
      sorted_coefficients: (num_rows,) moving average of the sorted coefficients; None
        without momentum (arrays without entries cannot be checkpointed).
      seen: (num_rows,) bool, which ranks have had a row yet; None without momentum.
      fell_back: () bool, the last update is the mean of normalized rows, because the
        coefficients did not have a safely positive sum.
    """

    sorted_coefficients: PerRow | None
    seen: Marked | None
    fell_back: Flag


@named
def subspace_weighting(
    momentum: Threshold = 0.0,
    num_rows: int | None = None,
    length: str = "unit",
    shift_negative: bool = False,
) -> Reducer:
    r"""Adaptive Consensus (AdaCons): rows weighted by how they agree with the sum.

    Also known as: AdaCons, adaptive consensus.

    .. math::
        a_i = \frac{\langle \bar g, g_i\rangle}{\|g_i\| + \epsilon}, \quad
        m \leftarrow \beta m + (1 - \beta)\,\mathrm{sort}(a), \quad
        a'_i = \frac{m_{\mathrm{rank}(i)}}{\sum_j m_j}, \quad
        u = \sum_i a'_i \frac{g_i}{\|g_i\| + \epsilon}

    with :math:`\epsilon = 10^{-8}` and m = sort(a) at first. The update is a
    *normalized* step (norm at most 1 when no coefficient is negative): a learning rate
    for SGD does not carry over, one for Adam does; ``length="mean_norm"`` gives it the
    rows' mean norm.

    Use ``momentum=0.99`` (the authors' training runs) when batches are small and the
    coefficients noisy, with a fixed number of workers; 0 (their class's default)
    otherwise. Compare with :func:`normalized_mean` before believing in either.

    Differences from the authors' code:
      1. coefficients return to their rows by the inverse of the sorting permutation;
         the code applies the permutation itself, wrong in all draws at 32 rows;
      2. where the sum of coefficients is not safely positive (below 1e-3 of the sum of
         magnitudes) the update is the mean of normalized rows and ``fell_back`` says
         so; the code divides by the sum whatever it is.

    Guarantees: the order of the rows is irrelevant; unchanged if all rows are scaled
    (to epsilon).
    Edge cases: one row: its direction. A zero row: coefficient 0. All rows zero: zero.
    ``weights``: sample counts: a row of weight 2 is two equal rows. With momentum the
    sorting counts each row once, and ranks beyond the rows present keep their average.

    Args:
      momentum: decay beta of the average of sorted coefficients, in [0, 1).
      num_rows: B, needed with momentum, since the average has that length.
      length: of a row in the sum: ``"unit"``, or ``"mean_norm"``, that of all rows.
      shift_negative: subtract the least coefficient if it is negative, so that no row
        counts against its direction; under :func:`per_leaf` and without momentum this
        is the variant in use on Ascend.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: a static argument is out of range; ``momentum`` without
        ``num_rows``; when traced, a stack of another number of rows.

    Cost: one Gramian, O(B log B), one combination.

    References: Choukroun et al., `Adaptive Consensus Gradients Aggregation for Scaled
    Distributed Training <https://arxiv.org/abs/2411.03742>`_, 2024.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = subspace_weighting(), jnp.zeros(2)
      >>> rows = jnp.array([[2., 0.], [0., 2.]])
      >>> print(rule.update(rows, rule.init(params), params)[0])
      [0.5 0.5]
    """
    _check.interval("momentum", momentum, 0, 1, open_high=True)
    _check.one_of("length", length, ("unit", "mean_norm"))
    _check.flag("shift_negative", shift_negative)
    averaged = not (isinstance(momentum, int | float) and momentum == 0)
    if averaged and num_rows is None:
        raise ValueError(
            f"`num_rows` must be the number of rows B when `momentum` is not 0, since "
            f"the state holds one average for each rank; got None with {momentum=!r}"
        )
    if num_rows is not None:
        _check.count("num_rows", num_rows)

    def init(params: Tree, dtype: Any) -> SubspaceState:
        del params
        if not averaged:
            return SubspaceState(None, None, jnp.zeros((), bool))
        return SubspaceState(
            jnp.zeros(num_rows, dtype), jnp.zeros(num_rows, bool), jnp.zeros((), bool)
        )

    def average(
        coefficients: Array, roster: Roster, state: SubspaceState
    ) -> tuple[Array, SubspaceState]:
        beta = _check.value_at(momentum, roster.step, coefficients.dtype)
        order = jnp.argsort(jnp.where(roster.present, coefficients, jnp.inf))
        there = roster.present[order]  # by rank: absent rows come last
        ascending = coefficients[order]
        old, seen = state.sorted_coefficients, state.seen
        assert old is not None  # there with momentum
        assert seen is not None
        mixed = jnp.where(seen, beta * old + (1 - beta) * ascending, ascending)
        kept = jnp.where(there, mixed, old)
        returned = jnp.zeros_like(coefficients).at[order].set(jnp.where(there, kept, 0))
        return returned, SubspaceState(kept, seen | there, state.fell_back)

    def weigh(
        gramian: Gramian, roster: Roster, state: SubspaceState
    ) -> tuple[PerRow, SubspaceState]:
        if num_rows is not None:
            _check.rows_expected(num_rows, roster.weights.shape[0])
        norms = root(gramian.diagonal())
        coefficients = (gramian @ roster.shares) / (norms + _EPS)
        if averaged:
            coefficients, state = average(coefficients, roster, state)
        if shift_negative:
            least = jnp.where(roster.present, coefficients, 0).min()
            coefficients = coefficients - jnp.minimum(least, 0)
        votes = roster.shares * coefficients
        total, spread = votes.sum(), jnp.abs(votes).sum()
        # What the coefficients are differences of: rounding is no agreement.
        terms = jnp.sum(jnp.abs(gramian) * roster.shares[None, :], 1) / (norms + _EPS)
        rounding = 8 * jnp.finfo(norms.dtype).eps * (roster.shares @ terms)
        fell_back = ~(total > _LEAST_SUM * spread + rounding)
        weights = jnp.where(
            fell_back, roster.shares, votes / jnp.where(fell_back, 1, total)
        ) / (norms + _EPS)
        if length == "mean_norm":
            weights *= roster.shares @ norms
        weights = jnp.where(norms > 0, weights, 0)
        return weights, state._replace(fell_back=fell_back)

    return reducer(Weighting(weigh, init))
