"""Sign consensus: a coordinate moves only where the rows agree on its sign."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rows.statistics import (
    LARGEST_NEGATIVE,
    LOG_MAGNITUDE,
    MINMOD,
    NEGATIVE_SUM,
    NONZERO_WEIGHT,
    POSITIVE_SUM,
    SMALLEST_POSITIVE,
    WEIGHTED_SIGN,
    WEIGHTED_SUM,
)
from consensus_optax._rules.arithmetic import SLACK, positive_or_one
from consensus_optax._rules.kinds import Fold, Roster
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, Threshold

_MAGNITUDES = ("min", "mean", "agreeing_mean", "geometric")


@named
def sign_consensus(
    quorum: Threshold = 1.0, magnitude: str = "min", rescale: bool = False
) -> Reducer:
    r"""Consensus training: keep a coordinate only where all rows agree in sign.

    Also known as: consensus training, AND-mask, minmod limiter.

    .. math:: u_p = s_p \min_{i:\, \mathrm{sign}(g_{ip}) = s_p} |g_{ip}|

    where :math:`s_p` is the sign that a weighted fraction of at least ``quorum`` of the
    rows has at coordinate p, and :math:`u_p = 0` where no sign has that. With
    ``quorum=1`` and ``magnitude="min"`` it is the minmod limiter of numerical analysis.
    ``magnitude="mean"`` is the AND-mask, whose threshold tau is a quorum of
    (1 + tau) / 2 where no entry is zero. A zero entry agrees with neither sign.

    Guarantees:
      - the order of the rows is irrelevant; scaling all rows scales the update
        (``"geometric"``: to its constant 1e-10);
      - ``quorum=1, magnitude="min"``: no row has a smaller entry, nor another sign;
        consensus of consensuses = consensus of all; one row is its own consensus.

    Edge cases: no agreement anywhere: zero, not ready. With all rows equal: that row
    (``"geometric"``: to 1e-10).

    ``weights``: votes. They decide what a quorum is and weigh every mean; for
    ``quorum=1, magnitude="min"`` only whether they are 0 matters.

    Args:
      quorum: weighted fraction in (0.5, 1], or a schedule of the step.
      magnitude: ``"min"``: the smallest among the agreeing rows; ``"mean"``: the mean
        of all rows; ``"agreeing_mean"``: the mean of the agreeing rows;
        ``"geometric"``: sign of the mean times exp(mean log(\|g\| + 1e-10)).
      rescale: divide every leaf by the fraction of its coordinates that survived
        (+ 1e-10).

    Returns:
      A :class:`Reducer`; field ``consensus_ratio`` of its state is the share of
      coordinates with a non-zero update.

    Raises:
      ValueError: a static argument is out of range.

    Cost: one pass over the rows, one array like the parameters carried (two to four
    with a quorum or another magnitude).

    References: Parascandolo et al., `Learning explanations that are hard to vary
    <https://arxiv.org/abs/2009.00329>`_, 2020 (mean, geometric, rescale). The minimum
    is consensus training's own.

    Examples:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[0.5, 0.5], [0.6, 0.6], [-0.8, 0.2]])
      >>> rule, params = sign_consensus(), jnp.zeros(2)
      >>> update, state = rule.update(rows, rule.init(params), params)
      >>> print(update)
      [0.  0.2]
      >>> print(state.consensus_ratio)
      0.5
    """
    _check.interval("quorum", quorum, 0.5, 1, open_low=True)
    _check.one_of("magnitude", magnitude, _MAGNITUDES)
    _check.flag("rescale", rescale)
    unanimous = isinstance(quorum, int | float) and quorum == 1
    if unanimous and magnitude == "min":
        return reducer(
            Fold(
                (MINMOD,), lambda merged, roster: _rescaled(merged[0], roster, rescale)
            )
        )
    statistics = {
        "min": (SMALLEST_POSITIVE, LARGEST_NEGATIVE),
        "mean": (WEIGHTED_SUM,),
        "agreeing_mean": (POSITIVE_SUM, NEGATIVE_SUM),
        "geometric": (WEIGHTED_SUM, LOG_MAGNITUDE),
    }[magnitude]

    def agreed(sign_sum: Array, nonzero: Array, roster: Roster) -> Array:
        """Where a quorum shares a sign, which is then that of the sum of signs."""
        total = roster.weights.sum()
        needed = _check.value_at(quorum, roster.step, total.dtype) * total * (1 - SLACK)
        return (nonzero + jnp.abs(sign_sum)) / 2 >= needed

    def moved(
        sign_sum: Array, nonzero: Array, roster: Roster, merged: list[Array]
    ) -> Array:
        """The update of a coordinate where there is a quorum."""
        total = _or_one(roster.weights.sum())
        match magnitude:
            case "min":
                return jnp.where(sign_sum > 0, merged[0], merged[1])
            case "mean":
                return merged[0] / total
            case "agreeing_mean":
                agreeing = _or_one((nonzero + jnp.abs(sign_sum)) / 2)
                return jnp.where(sign_sum > 0, merged[0], merged[1]) / agreeing
        return jnp.sign(merged[0]) * jnp.exp(merged[1] / total)

    def resolve(merged: list[list[Array]], roster: Roster) -> list[Array]:
        update = [
            jnp.where(
                agreed(sign_sum, nonzero, roster),
                moved(sign_sum, nonzero, roster, others),
                0,
            )
            for sign_sum, nonzero, *others in zip(*merged, strict=True)
        ]
        return _rescaled(update, roster, rescale)

    def matters(sign_sum: Array, nonzero: Array, *rest: Any) -> Array:
        """Where a magnitude is needed; ``rest`` ends with the rows."""
        return agreed(sign_sum, nonzero, rest[-1])

    votes = (WEIGHTED_SIGN, NONZERO_WEIGHT)
    return reducer(Fold((*votes, *statistics), resolve, matters))


def _or_one(number: Array) -> Array:
    """A divisor: the number where it is positive, else 1."""
    return positive_or_one(number)


def _rescaled(update: list[Array], roster: Roster, rescale: bool) -> list[Array]:
    """Every leaf divided by the fraction of its coordinates that survived."""
    if not rescale:
        return update
    moved = roster.coordinates.sums([(leaf != 0).astype(leaf.dtype) for leaf in update])
    sizes = roster.coordinates.sizes(update)
    return [
        leaf / (count / max(float(size), 1) + 1e-10)
        for leaf, count, size in zip(update, moved, sizes, strict=True)
    ]
