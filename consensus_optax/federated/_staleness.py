"""What an update is worth that comes late."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._typing import PerRow

Staleness = Callable[[PerRow], PerRow]


def polynomial_staleness(exponent: float = 0.5) -> Staleness:
    r"""Worth less by a power of the age.

    .. math:: s(\tau) = (1 + \tau)^{-a}

    Args:
      exponent: a >= 0; 0: age does not matter; 0.5 in FedBuff.

    Returns:
      A function of ages, for `buffered`.

    Raises:
      ValueError: ``exponent`` is negative.

    References: Xie et al., `Asynchronous Federated Optimization
    <https://arxiv.org/abs/1903.03934>`_, 2019; Nguyen et al., `Federated Learning with
    Buffered Asynchronous Aggregation <https://arxiv.org/abs/2106.06639>`_, 2022.

    Examples:
      >>> polynomial_staleness()(jnp.array([0.0, 3.0])).tolist()
      [1.0, 0.5]
    """
    _check.static_number("exponent", exponent, 0)
    return lambda ages: (1 + ages) ** -exponent


def hinge_staleness(slope: float, grace: float) -> Staleness:
    r"""Worth the same up to an age, then less and less.

    .. math:: s(\tau) = \frac{1}{1 + a \max(\tau - b, 0)}

    The paper divides by :math:`a (\tau - b) + 1` beyond b, which is the same.

    Args:
      slope: a >= 0; inf: too old is not there.
      grace: b >= 0.

    Returns:
      A function of ages, for `buffered`.

    Raises:
      ValueError: an argument is negative.

    References: Xie et al., `Asynchronous Federated Optimization
    <https://arxiv.org/abs/1903.03934>`_, 2019.

    Examples:
      >>> hinge_staleness(1.0, 2.0)(jnp.array([0.0, 2.0, 5.0])).tolist()
      [1.0, 1.0, 0.25]
    """
    _check.static_number("slope", slope, 0)
    _check.static_number("grace", grace, 0)

    def worth(ages: PerRow) -> PerRow:
        late = jnp.maximum(ages - grace, 0)
        return jnp.where(late > 0, 1 / (1 + slope * late), 1)

    return worth
