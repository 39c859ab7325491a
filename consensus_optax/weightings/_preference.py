"""Preference vectors: how much every row's own direction counts in a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from consensus_optax import _check
from consensus_optax._rules.kinds import Roster
from consensus_optax._typing import Array

Preference = Sequence[float] | np.ndarray | Array


def check(preference: Preference | None, name: str = "preference") -> None:
    """Checks that a preference is None or a vector of numbers >= 0."""
    if preference is None or isinstance(preference, jax.core.Tracer):
        return
    vector = np.asarray(preference)
    sound = vector.ndim == 1 and vector.size > 0 and vector.dtype.kind in "fiu"
    sound = sound and np.all(np.isfinite(vector)) and vector.min() >= 0
    if not sound or vector.max() == 0:
        _check.fail(name, "a vector of numbers >= 0, not all 0, one a row", preference)


def relative_weights(roster: Roster) -> Array:
    """Weights over the mean weight of the rows present, (B,): 1 where all are equal."""
    return roster.shares * jnp.sum(roster.present).astype(roster.weights.dtype)


def of_rows(
    preference: Preference | None, roster: Roster, name: str = "preference"
) -> Array:
    """The preference, or 1 each; (B,), 0 for absent rows.

    Raises:
      ValueError: the preference is not (B,).
    """
    return of_tasks(preference, roster.present, roster.weights.dtype, name)


def of_tasks(
    preference: Preference | None, present: Array, dtype: Any, name: str = "preference"
) -> Array:
    """As :func:`of_rows`, of who is there."""
    if preference is None:
        return present.astype(dtype)
    vector = jnp.asarray(preference).astype(dtype)
    if vector.shape != present.shape:
        raise ValueError(
            f"`{name}` must have one number a row, {present.shape}; got {vector.shape}"
        )
    return jnp.where(present, vector, 0)


def weighted(preference: Preference | None, roster: Roster) -> Array:
    """The preference times the relative weights, or the shares; (B,)."""
    if preference is None:
        return roster.shares
    return of_rows(preference, roster) * relative_weights(roster)
