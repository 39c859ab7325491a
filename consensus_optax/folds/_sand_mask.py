"""A soft mask: the sharper, the better the rows agree in sign and in size."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rows.statistics import (
    MOMENTS,
    WEIGHTED_SIGN,
)
from consensus_optax._rules.arithmetic import SLACK, positive_or_one
from consensus_optax._rules.kinds import Fold, Roster
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, Threshold
from consensus_optax.folds._moments import mean_and_variance


@named
def sand_mask(
    k: Threshold = 10.0,
    gamma: Threshold = 1.0,
    min_agreement: Threshold = 0.5,
    rescale: bool = True,
) -> Reducer:
    r"""SAND-mask: the mean, softly masked by agreement in sign over variance.

    Also known as: SAND-mask.

    .. math:: m_p = \max\Big(0, \tanh \frac{k\,(a_p - \tau)}{\gamma\, s_p^2}\Big), \quad
        a_p = \Big|\sum_i \omega_i \mathrm{sign}(g_{ip})\Big|, \quad
        u_p = \frac{m_p\, \bar g_p}{\mathrm{mean}_{\mathrm{leaf}}(m)}

    with :math:`s_p^2` the unbiased variance of coordinate p over rows. The published
    default of :math:`\tau = 1` masks everything, since the agreement never exceeds 1;
    the default here is 0.5 (three rows of four on one side).

    Guarantees: the order of the rows is irrelevant; a coordinate is 0 unless its
    agreement exceeds the threshold; without ``rescale`` none is larger than in the
    mean.
    Edge cases: zero variance (equal rows; a single row): mask 1, so u is the mean.
    Nothing above the threshold: zero, not ready. NOT invariant to scale, as published:
    the variance is in units of the gradient squared, so for small gradients this is
    the AND-mask, and for large ones the mask is proportional to its argument.

    ``weights``: votes, and what mean and variance are weighted by; only their ratios
    matter.

    Args:
      k: sharpness, positive; the authors search 1e-3 to 1e5. A number, array or
        schedule, as the two that follow.
      gamma: factor of the variance, positive; 1 in the authors' code.
      min_agreement: agreement tau in [0, 1) at which the mask begins.
      rescale: divide every leaf by the mean of its mask, as the authors do.

    Returns:
      A :class:`Reducer`; field ``consensus_ratio`` of its state is the share of
      coordinates with a non-zero update.

    Raises:
      ValueError: a static argument is out of range.

    Cost: one pass over the rows, four arrays like the parameters carried.

    References: Shahtalebi et al., `SAND-mask: an enhanced gradient masking strategy
    for the discovery of invariances in domain generalization
    <https://arxiv.org/abs/2106.02266>`_, 2021.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = sand_mask(), jnp.zeros(2)
      >>> rows = jnp.array([[1., 3.], [1., -1.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [2.0, 0.0]
    """
    _check.interval("k", k, 0, open_low=True)
    _check.interval("gamma", gamma, 0, open_low=True)
    _check.interval("min_agreement", min_agreement, 0, 1, open_high=True)
    _check.flag("rescale", rescale)

    def resolve(merged: list[list[Any]], roster: Roster) -> list[Array]:
        total = roster.weights.sum()
        total = positive_or_one(total)
        sharpness = _check.value_at(k, roster.step, total.dtype)
        sharpness /= _check.value_at(gamma, roster.step, total.dtype)
        tau = _check.value_at(min_agreement, roster.step, total.dtype)
        means: list[Array] = []
        masks: list[Array] = []
        for votes, moments in zip(*merged, strict=True):
            mean, variance, _ = mean_and_variance(moments, roster)
            excess = jnp.abs(votes) / total - tau
            varied = variance > 0
            mask = jnp.tanh(sharpness * excess / jnp.where(varied, variance, 1))
            mask = jnp.where(varied, mask, 1)
            means.append(mean)
            masks.append(jnp.where(excess > SLACK, mask, 0))
        if rescale:
            masks = _normalized(masks, roster)
        return [mean * mask for mean, mask in zip(means, masks, strict=True)]

    return reducer(Fold((WEIGHTED_SIGN, MOMENTS), resolve))


def _normalized(masks: list[Array], roster: Roster) -> list[Array]:
    """Every mask divided by its mean over the leaf."""
    sums, sizes = roster.coordinates.sums(masks), roster.coordinates.sizes(masks)
    shares = [
        total / max(float(size), 1) for total, size in zip(sums, sizes, strict=True)
    ]
    return [
        mask / positive_or_one(share) for mask, share in zip(masks, shares, strict=True)
    ]
