"""Clients who each join by their own chance, as accounting of privacy asks for."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax._typing import Array
from consensus_optax.federated._checked import checked_counts
from consensus_optax.privacy import PoissonSampling, poisson_batches


def sample_poisson(
    key: Array, counts: Array, num_sampled: int, *, probability: float
) -> tuple[Array, Array]:
    r"""Every client takes part with the same probability, independently of all others.

    .. math:: P(i) = \lfloor 2^{32} q \rfloor / 2^{32}

    What :func:`consensus_optax.privacy.poisson_batches` does to examples, and
    accounted for like it: ``PoissonSampling(num_clients, probability, num_rounds,
    num_sampled)``. Weights are 1, not counts, since one client must count like any
    other for :func:`consensus_optax.private_sum`.

    Edge cases: nobody may come: all weights are 0. Of more than ``num_sampled`` so many
    stay, all subsets with the same probability. A client without data has weight 0.

    Args:
      key: random key, of this round alone.
      counts: how much data each client has, ``(num_clients,)``; only 0 is looked at.
      num_sampled: places of the round; a few deviations above q N, each sqrt(q N).
      probability: q, in [2**-32, 1].

    Returns:
      Indices, ``(num_sampled,)`` int32, and weights, 1 for those who came, else 0.

    Raises:
      ValueError: an argument is out of range.

    Examples:
      >>> import jax
      >>> key, counts = jax.random.key(0), jnp.ones(100)
      >>> chosen, weights = sample_poisson(key, counts, 30, probability=0.1)
      >>> chosen.shape, 0 < float(weights.sum()) < 25
      ((30,), True)
    """
    counts = checked_counts(counts, num_sampled, repeated=True)
    count = counts.shape[0]
    sampling = PoissonSampling(count, probability, 1, num_sampled)
    clients = jnp.arange(count, dtype=jnp.int32)
    chosen, weights = poisson_batches(key, clients, sampling)(jnp.zeros((), jnp.int32))
    return chosen, jnp.where(counts[chosen] > 0, weights, 0)
