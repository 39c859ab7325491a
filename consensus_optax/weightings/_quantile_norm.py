"""A clipping norm that follows a quantile of the rows' norms, privately."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.kinds import Roster
from consensus_optax._typing import Array, Marked, Number


class QuantileNorm(NamedTuple):
    """What :func:`quantile_norm` is told.

    Attributes:
      initial: the first norm.
      expected_rows: m.
      quantile: q.
      learning_rate: eta.
      count_stddev: the deviation of the noise on the count.
    """

    initial: float
    expected_rows: float
    quantile: float
    learning_rate: float
    count_stddev: float

    def next(self, norm: Number, within: Marked, roster: Roster, key: Array) -> Number:
        """The norm of the next step.

        Args:
          norm: of this step.
          within: (B,) bool, which rows are no longer than it.
          roster: which are there.
          key: of the noise of this step.
        """
        dtype = norm.dtype
        votes = jnp.where(roster.present, jnp.where(within, 0.5, -0.5), 0)
        noise = self.count_stddev * jax.random.normal(key, (), dtype)
        share = (votes.astype(dtype).sum() + noise) / self.expected_rows + 0.5
        moved = norm * jnp.exp(-self.learning_rate * (share - self.quantile))
        # no farther than numbers reach, up to squares of norms
        most = jnp.sqrt(jnp.finfo(dtype).max) / 2
        return jnp.clip(moved, 1 / most, most)

    def left_for_the_sum(self, noise_multiplier: Any) -> float:
        """The multiplier of the sum, when both together are to have the given one."""
        if not noise_multiplier:
            return 0.0
        noise_multiplier = float(noise_multiplier)
        count = 2 * self.count_stddev  # a row changes it by one half
        if count <= noise_multiplier:
            raise ValueError(
                "`count_stddev` must be above half of `noise_multiplier`, which the "
                f"count and the sum share; got {self.count_stddev:g} and "
                f"{noise_multiplier:g}"
            )
        return (noise_multiplier**-2 - count**-2) ** -0.5


def quantile_norm(
    initial: float,
    *,
    expected_rows: float,
    quantile: float = 0.5,
    learning_rate: float = 0.2,
    count_stddev: float | None = None,
) -> QuantileNorm:
    r"""A clipping norm for :func:`private_sum` that follows the rows' norms.

    .. math:: C \leftarrow C \exp(-\eta (b - q)), \qquad
        b = \frac1m \Big(\sum_i \big(1_{\|g_i\| \le C} - \tfrac12\big)
        + N(0, \sigma_b^2)\Big) + \tfrac12

    The noisy count costs part of the noise multiplier z of the private sum, whose own
    becomes :math:`(z^{-2} - (2 \sigma_b)^{-2})^{-1/2}`: z is that of both together, and
    what an accountant is told. With the default :math:`\sigma_b`, m = 64 and z = 1 the
    sum has 1.012.

    Guarantees: C depends on the rows by the noisy counts of the steps before alone.
    Edge cases: no row: the count is noise. A row that is not finite does not count.

    Args:
      initial: the first C > 0.
      expected_rows: m, the expected number of rows of a batch.
      quantile: q in [0, 1], the share of rows that are to be left as they are.
      learning_rate: :math:`\eta \ge 0`, of the logarithm of C.
      count_stddev: :math:`\sigma_b > 0`; None for m / 20, as published.

    Returns:
      What ``max_norm`` of :func:`private_sum` may be.

    Raises:
      ValueError: an argument is out of range.

    References: Andrew et al., `Differentially Private Learning with Adaptive Clipping
    <https://arxiv.org/abs/1905.03871>`_, 2019, algorithm 1.

    Examples:
      >>> quantile_norm(0.1, expected_rows=64).count_stddev
      3.2
    """
    _check.static_number("initial", initial, 0, open_low=True)
    _check.static_number("expected_rows", expected_rows, 0, open_low=True)
    _check.static_number("quantile", quantile, 0, 1)
    _check.static_number("learning_rate", learning_rate, 0)
    if count_stddev is None:
        count_stddev = expected_rows / 20
    _check.static_number("count_stddev", count_stddev, 0, open_low=True)
    return QuantileNorm(initial, expected_rows, quantile, learning_rate, count_stddev)
