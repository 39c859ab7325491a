"""What filters read off a Gramian: cosines and distances of all pairs of rows."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax._distances import squared_distances
from consensus_optax._typing import Array


def cosines(gramian: Array) -> tuple[Array, Array]:
    """Cosines of all pairs, (B, B), and which rows have a direction, (B,) bool.

    A row of zeros has cosine 0 with everything.
    """
    norms = jnp.sqrt(gramian.diagonal())
    moving = norms > 0
    safe = jnp.where(moving, norms, 1)
    both = moving[:, None] & moving[None, :]
    cosine = jnp.clip(gramian / safe[:, None] / safe[None, :], -1, 1)
    return jnp.where(both, cosine, 0), moving


def distances(centered: Array) -> Array:
    """Distances of all pairs of rows, (B, B), from their centered Gramian."""
    everybody = jnp.ones(centered.shape[0], bool)  # finite, so that weight 0 is enough
    return jnp.sqrt(squared_distances(centered, everybody))


def off_diagonal(present: Array) -> Array:
    """The pairs of two different rows that are both there, (B, B) bool."""
    pairs = present[:, None] & present[None, :]
    return pairs & ~jnp.eye(present.shape[0], dtype=bool)
