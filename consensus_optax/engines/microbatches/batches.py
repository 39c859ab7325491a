"""Rows a few at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._gradients.arguments import Arranged
from consensus_optax._gradients.per_example import value_and_rows
from consensus_optax._rows.stack import Stack, as_stack, present_weights
from consensus_optax._rules.kinds import Roster
from consensus_optax._typing import Array, Tree


class Block(NamedTuple):
    """The rows of one microbatch.

    Attributes:
      index: () int32, which microbatch it is.
      stack: their gradients.
      weights: (m,), 0 for rows that cannot count.
      num_nonfinite: () int32, how many of them for an inf or a nan.
      value: what the function returned for each row.
    """

    index: Array
    stack: Stack
    weights: Array
    num_nonfinite: Array
    value: Any

    @property
    def rows(self) -> Roster:
        """These rows as folds see them; they are not all, so no step and no extras."""
        return Roster(self.weights, jnp.zeros((), jnp.int32), {})


class Seen(NamedTuple):
    """What is known of all rows once they have been computed.

    Attributes:
      rows: all of them; on a mesh those of all devices.
      num_nonfinite: () int32, how many are left out for an inf or a nan.
      value: what the function returned for each row; on a mesh each of this device's.
    """

    rows: Roster
    num_nonfinite: Array
    value: Any = None


class Microbatches(NamedTuple):
    """A batch of rows in microbatches of m, the last one padded with weight 0.

    Microbatch j holds the rows j, j + k, j + 2 k, ... of k microbatches, so that a
    batch sharded over devices stays where it is.

    Attributes:
      fun: the loss of one row, (value, aux) with ``has_aux``.
      has_aux: whether it returns aux.
      arranged: its arguments, of all rows.
      params: the argument or arguments that are differentiated.
      weights: (B,) 0 for rows that are not there, negative for those that cannot
        count, as far as is known.
      indices: (k, m) which rows make a microbatch; B and above is padding.
    """

    fun: Callable[..., Any]
    has_aux: bool
    arranged: Arranged
    params: Tree
    weights: Array
    indices: Array

    def losses(self, value: Any) -> Array:
        """The losses in what the function returned for every row."""
        return value[0] if self.has_aux else value

    def block(self, index: Any) -> Block:
        """Computes the rows of one microbatch."""
        num_rows = self.arranged.num_rows
        taken = self.indices[index]
        there = taken < num_rows
        safe = jnp.where(there, taken, 0)
        value, rows = value_and_rows(self.fun, self.arranged.take(safe), self.has_aux)
        stack = as_stack(rows, self.params)
        weights = jnp.where(there, self.weights[safe], 0)
        weights, num_nonfinite = present_weights(stack, weights)
        return Block(index, stack, weights, num_nonfinite, value)

    def weighted_grad(self, index: Any, weights: Array) -> Tree:
        """Gradient of sum_i weights[i] loss_i of a microbatch: a plain backward pass.

        A row of weight 0 may be one that gives nan, which no factor removes: its place
        is taken by a row that counts.
        """
        counts = weights != 0
        taken = self.indices[index]
        there = taken < self.arranged.num_rows
        own = jnp.where(there, taken, 0)
        factors = jnp.where(there, weights[own], 0)
        rows = self.arranged.take(jnp.where(factors != 0, own, jnp.argmax(counts)))

        def weighted_sum(*args: Any) -> Array:
            values = jax.vmap(self.fun, rows.in_axes)(*args)
            values = self.losses(values)
            return jnp.vdot(factors.astype(values.dtype), values)

        return jax.grad(weighted_sum, rows.argnums)(*rows.args)

    def in_order(self, by_block: Tree) -> Tree:
        """Undoes the split: leaves (k, m, ...) to (B, ...) in the order of the rows."""

        def join(leaf: Array) -> Array:
            rows = leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:])
            return rows[: self.arranged.num_rows]

        return jax.tree.map(join, by_block)

    def scan(
        self, step: Callable[[Any, Block], tuple[Any, Any]], carry: Any
    ) -> tuple[Any, Any]:
        """Runs over all blocks; step: (carry, block) to (carry, output)."""
        body = lambda carry, index: step(carry, self.block(index))
        carry = self.arranged.varying(carry)
        return lax.scan(body, carry, jnp.arange(self.indices.shape[0]))


def row_indices(num_rows: int, microbatch_size: int) -> Array:
    """(k, m) indices of the rows of every microbatch; num_rows and above is padding."""
    count = -(-num_rows // microbatch_size)
    return jnp.arange(count * microbatch_size).reshape(microbatch_size, count).T
