"""What is known of all rows, handed to every device as arrays of its own.

A function that runs on each device and only refers to an array takes it along as it
lies on the mesh outside, and JAX refuses some operations of the two kinds.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax._rules.kinds import Roster


def arrays_of(batch: Any, roster: Roster) -> Any:
    """What is told."""
    known = roster.weights, jnp.asarray(roster.scale), batch.scalings
    mixture = batch.mixture
    return *known, mixture and (mixture.matrix, mixture.before.weights)


def with_arrays(batch: Any, roster: Roster, told: Any) -> tuple[Any, Roster]:
    """The same batch and roster, of what a device was told."""
    weights, scale, scalings, mixed = told
    batch, mixture = batch._replace(scalings=scalings), batch.mixture
    if mixture is not None:
        before = mixture.before._replace(weights=mixed[1])
        mixture = mixture._replace(matrix=mixed[0], before=before)
    return batch._replace(mixture=mixture), roster._replace(
        weights=weights, scale=scale
    )
