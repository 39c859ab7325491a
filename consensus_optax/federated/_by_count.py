"""Clients drawn in proportion to their data."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._typing import Array
from consensus_optax.federated._checked import checked_counts


def sample_by_count(key: Array, counts: Array, num_sampled: int) -> tuple[Array, Array]:
    r"""Draws clients in proportion to their data, with replacement; all weigh the same.

    .. math:: E[\text{times } i] = m p_i, \qquad P(i) = 1 - (1 - p_i)^m, \qquad
        p_i = n_i / \textstyle\sum_j n_j

    so that the plain mean of the updates is that of all clients by count, in
    expectation. A client that is drawn twice is two rows, with batches of its own each.

    Args:
      key: random key.
      counts: how much data each client has, ``(num_clients,)``; 0: not there.
      num_sampled: m, how many to draw; it may exceed the number of clients.

    Returns:
      Indices, ``(num_sampled,)`` int32, and weights, 1; 0 where no client has data.

    Raises:
      ValueError: ``num_sampled`` is no count.

    References: Li et al., `Federated Optimization in Heterogeneous Networks
    <https://arxiv.org/abs/1812.06127>`_, 2020 (FedProx draws so).

    Examples:
      >>> chosen, weights = sample_by_count(jax.random.key(0), jnp.array([0, 9]), 3)
      >>> chosen.tolist(), weights.tolist()
      ([1, 1, 1], [1.0, 1.0, 1.0])
    """
    counts = checked_counts(counts, num_sampled, repeated=True).astype(jnp.float32)
    counts = jnp.maximum(counts, 0)
    shares = counts / positive_or_one(counts.sum())
    chosen = jax.random.choice(key, counts.shape[0], (num_sampled,), p=shares)
    return chosen.astype(jnp.int32), (counts[chosen] > 0).astype(jnp.float32)
