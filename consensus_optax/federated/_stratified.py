"""Clients of every kind in every round."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from consensus_optax._typing import Array
from consensus_optax.federated._checked import checked_counts


def sample_stratified(
    key: Array, counts: Array, num_sampled: int, *, strata: Any
) -> tuple[Array, Array]:
    r"""Of every stratum its share of the round, uniformly, none twice.

    .. math:: P(i) = m_h / N_h, \qquad \text{weight } n_i N_h / m_h
        \quad \text{for } i \text{ in stratum } h

    with N_h the clients of the stratum that are there, and m_h places in proportion to
    its size, one at least. By these weights the sum of the updates is, in expectation,
    that of all clients by count; strata whose clients are alike take its variance away.

    Args:
      key: random key.
      counts: how much data each client has, ``(num_clients,)``; 0: not there.
      num_sampled: m.
      strata: (num_clients,) integers, known when traced: the kind of each client.

    Returns:
      Indices, ``(num_sampled,)`` int32, stratum by stratum, and weights, 0 where a
      stratum has too few who are there.

    Raises:
      ValueError: an argument is out of range, or there are more strata than places.

    Examples:
      >>> counts, strata = jnp.array([4, 4, 4, 2]), [0, 0, 0, 1]
      >>> chosen, weights = sample_stratified(
      ...     jax.random.key(0), counts, 3, strata=strata)
      >>> bool((chosen[:2] < 3).all()), int(chosen[2]), weights.tolist()
      (True, 3, [6.0, 6.0, 2.0])
    """
    counts = checked_counts(counts, num_sampled)
    strata = np.asarray(strata)
    if strata.shape != counts.shape:
        raise ValueError(
            f"`strata` must have one entry for each of {counts.shape[0]} clients; got "
            f"shape {strata.shape}"
        )
    kinds, sizes = np.unique(strata, return_counts=True)
    if len(kinds) > num_sampled:
        raise ValueError(
            f"`num_sampled` must be at least the number of strata, {len(kinds)}; got "
            f"{num_sampled}"
        )
    draws = jax.random.uniform(key, counts.shape)
    chosen: list[Array] = []
    weights: list[Array] = []
    for kind, places in zip(kinds, _places(sizes, num_sampled), strict=True):
        there = (counts > 0) & (strata == kind)
        _, own = jax.lax.top_k(jnp.where(there, draws, -1), int(places))
        num_there = there.sum().astype(jnp.float32)
        taken = jnp.maximum(jnp.minimum(num_there, float(places)), 1)
        counted = counts[own].astype(jnp.float32) * num_there / taken
        chosen.append(own)
        weights.append(jnp.where(there[own], counted, 0))
    return jnp.concatenate(chosen).astype(jnp.int32), jnp.concatenate(weights)


def _places(sizes: np.ndarray, total: int) -> np.ndarray:
    """Places in proportion, one at least for each and no more than it has.

    One place at a time, to whom it is due most.
    """
    places = np.ones(len(sizes), int)
    while places.sum() < total:
        due = np.where(places < sizes, sizes / (places + 0.5), -1)
        places[due.argmax()] += 1
    return places
