"""Clients of largest loss, of some candidates."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._typing import Array
from consensus_optax.federated._checked import checked_counts


def sample_by_loss(
    key: Array,
    counts: Array,
    num_sampled: int,
    *,
    num_candidates: int,
    losses_of: Callable[[Array], Array],
) -> tuple[Array, Array]:
    r"""Power of choice: of d candidates, drawn by count, the m of largest loss.

    Candidates are drawn one after the other without replacement, each time in
    proportion to the counts of those left. With equal counts the client of rank r by
    loss (r = 0: the largest) of N is drawn with the probability

    .. math:: P(r) = \frac dN \sum_{k=0}^{m-1}
        \binom rk \binom{N - 1 - r}{d - 1 - k} \Big/ \binom{N - 1}{d - 1}

    Edge cases: d = m: losses do not matter. A client without data, or whose loss is not
    finite, is chosen last, and has weight 0.

    Args:
      key: random key.
      counts: how much data each client has, ``(num_clients,)``; 0: not there.
      num_sampled: m.
      num_candidates: d, from m to the number of clients; larger: faster, less fair.
      losses_of: from the candidates' indices, ``(num_candidates,)``, to their losses:
        of the parameters of now (``vmap`` of the loss over their data), or the last
        that were heard of, an array by client.

    Returns:
      Indices, ``(num_sampled,)`` int32, largest loss first, and weights, 1.

    Raises:
      ValueError: a count is out of range; ``losses_of`` gives another shape.

    References: Cho et al., `Client Selection in Federated Learning
    <https://arxiv.org/abs/2010.01243>`_, 2020.

    Examples:
      >>> losses, counts = jnp.array([1.0, 5.0, 3.0]), jnp.array([2, 2, 2])
      >>> chosen, _ = sample_by_loss(jax.random.key(0), counts, 2, num_candidates=3,
      ...                            losses_of=lambda clients: losses[clients])
      >>> chosen.tolist()
      [1, 2]
    """
    counts = checked_counts(counts, num_sampled)
    _check.count("num_candidates", num_candidates, num_sampled)
    if num_candidates > counts.shape[0]:
        most = f"at most the number of clients, {counts.shape[0]}"
        _check.fail("num_candidates", most, num_candidates)
    shares = jnp.maximum(counts.astype(jnp.float32), 0)
    candidates = jax.random.choice(
        key, counts.shape[0], (num_candidates,), replace=False, p=shares
    ).astype(jnp.int32)
    losses = jnp.asarray(losses_of(candidates))
    if losses.shape != candidates.shape:
        raise ValueError(
            f"`losses_of` must give one loss for each of the {num_candidates} "
            f"candidates; got shape {losses.shape}"
        )
    there = (counts[candidates] > 0) & jnp.isfinite(losses)
    _, best = jax.lax.top_k(jnp.where(there, losses, -jnp.inf), num_sampled)
    return candidates[best], there[best].astype(jnp.float32)
