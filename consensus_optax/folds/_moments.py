"""Mean and variance over rows from the moments that a fold carries."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.kinds import Roster
from consensus_optax._typing import Array


def mean_and_variance(
    moments: tuple[Array, Array, Array], roster: Roster
) -> tuple[Array, Array, Array]:
    r"""Per coordinate the mean, the unbiased variance of a row, and that of the mean.

    With shares :math:`\omega_i` and :math:`q = \sum_i \omega_i^2` (1/N for equal ones):

    .. math:: s^2 = \sum_i \omega_i (g_i - \bar g)^2 / (1 - q), \qquad
        \mathrm{Var}(\bar g) = q\, s^2

    One row has no variance to speak of: 0.
    """
    mass, mean, squares = moments
    shares = roster.shares
    q = jnp.sum(shares**2)
    # 1 - q, of which nothing would be left beside one share of nearly all.
    apart = 2 * jnp.sum(shares[1:] * jnp.cumsum(shares[:-1]))
    several = jnp.sum(roster.present) > 1
    spread = squares / positive_or_one(mass)
    variance = jnp.where(several, spread / positive_or_one(apart), 0)
    return jnp.where(mass > 0, mean, 0), variance, q * variance
