"""A shift within the spread of the honest rows."""

from __future__ import annotations

import statistics

import jax

from consensus_optax import _check
from consensus_optax._typing import Array, Tree
from consensus_optax.attacks._from_mean import from_mean


def a_little_is_enough(
    honest: Tree,
    num_byzantine: int,
    key: Array | None = None,
    *,
    num_deviations: float | None = None,
) -> Tree:
    r"""ALIE: :math:`\bar g - z \sigma` in every coordinate, within the honest spread.

    .. math:: z = \Phi^{-1}\left(\frac{n - f - s}{n - f}\right), \qquad
        s = \lfloor n / 2 \rfloor + 1 - f

    so that with s honest rows beyond them the attackers are a majority (Baruch et al.,
    `A Little Is Enough <https://arxiv.org/abs/1902.06156>`_, 2019). :math:`\sigma` is
    the standard deviation of the h = n - f honest rows (divisor h).

    Args:
      honest: rows, (h, \*shape) leaves.
      num_byzantine: f, how many attackers there are.
      key: not used.
      num_deviations: z; None for the formula, which gives 0 or less where few
        attackers face many honest rows.

    Returns:
      Rows with f in every leaf, all equal.

    Raises:
      ValueError: the attackers are a majority.

    Examples:
      >>> import jax.numpy as jnp
      >>> honest = jnp.array([[1.], [3.], [1.], [3.]])
      >>> a_little_is_enough(honest, 1, num_deviations=1.0).tolist()
      [[1.0]]
    """
    del key
    if num_deviations is None:
        num_honest = jax.tree.leaves(honest)[0].shape[0]
        num_deviations = deviations(num_honest + num_byzantine, num_byzantine)
    z = num_deviations
    return from_mean(honest, num_byzantine, lambda mean, std: mean - z * std)


def deviations(num_rows: int, num_byzantine: int) -> float:
    """Standard deviations that :func:`a_little_is_enough` goes from the mean.

    Args:
      num_rows: n, all rows.
      num_byzantine: f, attackers among them.

    Returns:
      z, in standard deviations.

    Raises:
      ValueError: the attackers are a majority.

    Examples:
      >>> round(deviations(50, 12), 3)
      0.336
    """
    _check.count("num_byzantine", num_byzantine)
    supporters = num_rows // 2 + 1 - num_byzantine
    num_honest = num_rows - num_byzantine
    if not 0 < supporters < num_honest:
        _check.fail(
            "num_byzantine", f"a minority of the {num_rows} rows", num_byzantine
        )
    share = (num_honest - supporters) / num_honest
    return statistics.NormalDist().inv_cdf(share)
