"""What rules share that change each row by the others, one after the other."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax._rules.kinds import Roster
from consensus_optax._typing import Array


class Rotation(NamedTuple):
    """Some rows as combinations of all rows, h, and their products with all rows."""

    weights: Array  # (b, B)
    products: Array  # (b, B)

    def plus(self, added: Array, others: Array, gramian: Array) -> Rotation:
        """Each h and ``added`` times the row that ``others`` names, (b,) both."""
        indices = jnp.arange(added.shape[0])
        return Rotation(
            self.weights.at[indices, others].add(added),
            self.products + added[:, None] * gramian[others],
        )


def unchanged(rows: Array, gramian: Array) -> Rotation:
    """The rows of these indices, (b,), as they are."""
    itself = jax.nn.one_hot(rows, gramian.shape[0], dtype=gramian.dtype)
    return Rotation(itself, gramian[rows])


def random_orders(key: Array, roster: Roster, rows: Array) -> Array:
    """For each of ``rows`` (b,) all rows in an order of its own, by step; (b, B)."""
    step_key = jax.random.fold_in(key, roster.step)
    places = jnp.cumsum(roster.present) - 1  # an absent row changes no draw

    def draws(i: Array) -> Array:
        row_key = jax.random.fold_in(step_key, i)
        pair_keys = jax.vmap(lambda j: jax.random.fold_in(row_key, j))(places)
        draw = lambda key: jax.random.uniform(key, (), jnp.float32)
        return jax.vmap(draw)(pair_keys)

    return jnp.argsort(jax.vmap(draws)(places[rows]), 1)
