"""A gate on every coordinate of the mean by how far it stands out of its noise."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rows.statistics import MOMENTS
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.kinds import Fold, Roster
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, Threshold
from consensus_optax.folds._moments import mean_and_variance

_SLACK = 1e-5  # one row alone in a coordinate has r = 1 exactly: no rounding decides


@named
def signal_to_noise(min_ratio: Threshold = 1.0, gate: str = "hard") -> Reducer:
    r"""Signal-to-noise gate: the mean where it exceeds its own standard error.

    Also known as: GSNR, M-SVAG.

    .. math:: r_p = \frac{\bar g_p^2}{s_p^2 / N}, \qquad
        u_p = \bar g_p\,[r_p \ge \tau] \ \text{(hard)} \quad\text{or}\quad
        \bar g_p\,\frac{r_p}{r_p + \tau} \ \text{(soft)}

    with :math:`s_p^2` the unbiased variance over rows: r is the squared t-statistic of
    the mean, N times the gradient signal-to-noise ratio (GSNR). The soft gate with
    :math:`\tau = 1` is the variance adaptation of M-SVAG, which minimizes the expected
    squared error of the update.

    Guarantees: the order of the rows is irrelevant; scaling all rows scales the
    update; never larger than the mean in any coordinate; tau = 0 is the mean.
    Edge cases: zero variance (equal rows, a single row): u is the mean. A coordinate
    that one row alone moves has r = 1, which passes tau = 1. No coordinate passes:
    zero, not ready.

    ``weights``: mean and variance are weighted by them, and 1/N becomes the sum of
    their squared shares; only their ratios matter.

    Args:
      min_ratio: tau >= 0; with the hard gate 4 keeps about what is significant at
        0.05. A number, array or schedule.
      gate: ``"hard"`` or ``"soft"``.

    Returns:
      A :class:`Reducer`; field ``consensus_ratio`` of its state is the share of
      coordinates that pass.

    Raises:
      ValueError: a static argument is out of range.

    Cost: one pass over the rows, three arrays like the parameters carried.

    References: Balles, Hennig, `Dissecting Adam: the sign, magnitude and variance of
    stochastic gradients <https://arxiv.org/abs/1705.07774>`_, 2017 (soft); Liu et al.,
    `Understanding why neural networks generalize well through GSNR of parameters
    <https://arxiv.org/abs/2001.07384>`_, 2020.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = signal_to_noise(), jnp.zeros(2)
      >>> rows = jnp.array([[1., 5.], [2., -4.], [3., 2.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [2.0, 0.0]
    """
    _check.interval("min_ratio", min_ratio, 0)
    _check.one_of("gate", gate, ("hard", "soft"))

    def resolve(merged: list[list[Any]], roster: Roster) -> list[Array]:
        tau = _check.value_at(min_ratio, roster.step, roster.weights.dtype)
        update = []
        for moments in merged[0]:
            mean, _, noise = mean_and_variance(moments, roster)
            signal = mean * mean
            if gate == "hard":
                update.append(jnp.where(signal >= (1 - _SLACK) * tau * noise, mean, 0))
            else:
                both = signal + tau * noise
                share = jnp.where(both > 0, signal / positive_or_one(both), 1)
                update.append(mean * share)
        return update

    return reducer(Fold((MOMENTS,), resolve))
