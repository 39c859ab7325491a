"""Colluding attackers who stay away together."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._typing import Array, PerRow


def silence(
    weights: PerRow, num_byzantine: int, key: Array, *, probability: float = 0.5
) -> PerRow:
    r"""All attackers are absent at the same time, or all are there.

    One draw decides for all. Who waits for a number of rows, trims a number of them or
    sums under masks must do with those that are left; a rule told of f attackers now
    gives up f honest rows.

    Args:
      weights: (h + f,) of all rows, the attackers' last.
      num_byzantine: f, how many attackers there are.
      key: random key, of the round.
      probability: how often they stay away, in [0, 1].

    Returns:
      The weights, those of the attackers 0 where they stay away.

    Raises:
      ValueError: an argument is out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> silence(jnp.ones(4), 2, jax.random.key(0), probability=1.0).tolist()
      [1.0, 1.0, 0.0, 0.0]
    """
    _check.count("num_byzantine", num_byzantine)
    _check.static_number("probability", probability, 0, 1)
    weights = jnp.asarray(weights)
    if num_byzantine > weights.shape[0]:
        most = f"at most the number of rows, {weights.shape[0]}"
        _check.fail("num_byzantine", most, num_byzantine)
    away = jax.random.bernoulli(key, probability)
    attackers = jnp.arange(weights.shape[0]) >= weights.shape[0] - num_byzantine
    return jnp.where(away & attackers, 0, weights)
