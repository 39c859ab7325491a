"""Clients drawn all alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from consensus_optax._typing import Array
from consensus_optax.federated._checked import checked_counts


def sample_clients(key: Array, counts: Array, num_sampled: int) -> tuple[Array, Array]:
    r"""Draws the clients of a round: all alike, none twice, only those with data.

    .. math:: P(i) = \min(1, m / N)

    with N the clients that are there; the sum of the updates by count, over the sum of
    the counts, is FedAvg.

    Args:
      key: random key.
      counts: how much data each client has, ``(num_clients,)``; 0: not there.
      num_sampled: m, how many to draw.

    Returns:
      Their indices, ``(num_sampled,)`` int32, and their counts in float32, which are
      the ``weights`` of the round. If too few are there the last ones have weight 0.

    Raises:
      ValueError: ``num_sampled`` is no count, or there are not so many clients.

    Examples:
      >>> counts = jnp.array([5, 0, 7])
      >>> chosen, weights = sample_clients(jax.random.key(0), counts, 3)
      >>> sorted(chosen[:2].tolist()), chosen[2:].tolist(), float(weights[2])
      ([0, 2], [1], 0.0)
    """
    counts = checked_counts(counts, num_sampled)
    present = (counts > 0).astype(jnp.float32)
    chosen = jax.random.choice(
        key, counts.shape[0], (num_sampled,), replace=False, p=present
    )
    return chosen, counts[chosen].astype(jnp.float32)
