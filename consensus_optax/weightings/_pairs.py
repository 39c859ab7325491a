"""What filters read off a Gramian: cosines and distances of all pairs of rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from consensus_optax._rules import solvers
from consensus_optax._rules.arithmetic import SLACK, root
from consensus_optax._rules.distances import first_of_least, squared_distances
from consensus_optax._rules.kinds import Roster
from consensus_optax._typing import Array


def cosines(gramian: Array) -> tuple[Array, Array]:
    """Cosines of all pairs, (B, B), and which rows have a direction, (B,) bool.

    A row of zeros has cosine 0 with everything.
    """
    cosine, lengths = solvers.cosines(gramian)
    return jnp.clip(cosine, -1, 1), lengths > 0


def distances(products: Array) -> Array:
    """Distances of all pairs, (B, B), from products of rows less any one point."""
    everybody = jnp.ones(products.shape[0], bool)  # finite, so that weight 0 is enough
    return root(squared_distances(products, everybody))


def medoid(pairwise: Array, roster: Roster) -> Array:
    """Index of the row with the least median distance to the others; of ties the first.

    A sum of distances would be lost in the rounding of one very large one.
    """
    to_others = jnp.where(jnp.eye(pairwise.shape[0], dtype=bool), 0, roster.weights)
    medians = jax.vmap(lower_median)(pairwise, to_others)
    return first_of_least(medians, roster.present)


def lower_median(values: Array, weights: Array) -> Array:
    """The least value up to which half of the weight lies; 0 without weight."""
    ranked, mass = _ranked(values, weights)
    half = mass[-1] / 2 * (1 - SLACK)
    return jnp.where(mass[-1] > 0, ranked[jnp.argmax(mass >= half)], 0)


def majority(values: Array, weights: Array) -> Array:
    """The least value up to which more than half of the weight lies; inf without."""
    ranked, mass = _ranked(values, weights)
    half = mass[-1] / 2 * (1 + SLACK)
    return jnp.where(mass[-1] > 0, ranked[jnp.argmax(mass > half)], jnp.inf)


def _ranked(values: Array, weights: Array) -> tuple[Array, Array]:
    """Values that have weight, the least first, and what weighs up to each of them."""
    order = jnp.argsort(jnp.where(weights > 0, values, jnp.inf))
    return values[order], jnp.cumsum(weights[order])


def off_diagonal(present: Array) -> Array:
    """The pairs of two different rows that are both there, (B, B) bool."""
    pairs = present[:, None] & present[None, :]
    return pairs & ~jnp.eye(present.shape[0], dtype=bool)
