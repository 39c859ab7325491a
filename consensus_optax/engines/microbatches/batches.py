"""Rows a few at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._gradients.arguments import Arranged
from consensus_optax._gradients.per_example import value_and_rows
from consensus_optax._rows import verbs
from consensus_optax._rows.stack import Stack, as_stack, present_weights
from consensus_optax._rules.kinds import Roster, Scaling
from consensus_optax._running.memory import Memory
from consensus_optax._running.source import Seen
from consensus_optax._running.steps import decided_factors
from consensus_optax._typing import Array, Tree


class Block(NamedTuple):
    """The rows of one microbatch.

    Attributes:
      index: () int32, which microbatch it is.
      stack: their gradients.
      weights: (m,), 0 for rows that cannot count.
      num_nonfinite: () int32, how many of them for an inf or a nan.
      value: what the function returned for each row.
      factors: (m,) each, of what `WhenSeen` does, nan for a row that is not there.
    """

    index: Array
    stack: Stack
    weights: Array
    num_nonfinite: Array
    value: Any
    factors: tuple[Array, ...] = ()

    @property
    def source(self) -> Memory:
        """These rows alone; they are not all, so there is no step and are no extras."""
        return self.some_of(Roster(self.weights, jnp.zeros((), jnp.int32), {}))

    def some_of(self, roster: Roster) -> Memory:
        """These rows, as some of a roster's."""
        own = roster._replace(weights=self.weights)
        return Memory(self.stack.leaves, Seen(own, self.num_nonfinite))


class WhenSeen(NamedTuple):
    """A scaling of rows by what each look finds out anew, every row for itself.

    Attributes:
      scaling: of one row, whatever the others are.
      step: () int32, see `Roster`.
    """

    scaling: Scaling
    step: Array


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
      scalings: (B,) each, what rows are multiplied by, one after the other, or
        `WhenSeen`.
    """

    fun: Callable[..., Any]
    has_aux: bool
    arranged: Arranged
    params: Tree
    weights: Array
    indices: Array
    scalings: tuple[Array | WhenSeen, ...] = ()

    def losses(self, value: Any) -> Array:
        """The losses in what the function returned for every row."""
        return value[0] if self.has_aux else value

    def block(self, index: Any) -> Block:
        """Computes the rows of one microbatch."""
        there, safe = self._taken(index)
        value, rows = self._computed(index)
        weights = jnp.where(there, self.weights[safe], 0)
        scaled = self._scaled(as_stack(rows, self.params), safe, weights)
        return Block(index, *scaled[:3], value, scaled[3])

    def values(self) -> Any:
        """What the function returns for each row; a compiled program has no more."""
        numbers = jnp.arange(self.indices.shape[0])
        return self.in_order(lax.map(lambda index: self._computed(index)[0], numbers))

    def _taken(self, index: Any) -> tuple[Array, Array]:
        """Which rows of one microbatch are there, and where any of them is."""
        taken = self.indices[index]
        there = taken < self.arranged.num_rows
        return there, jnp.where(there, taken, 0)

    def _computed(self, index: Any) -> tuple[Any, Any]:
        """Values and gradients of one microbatch."""
        count, size = self.indices.shape
        if count * size == self.arranged.num_rows:
            return self._of_own(self.arranged.turn(jnp.asarray(index), count))
        return self._value_and_rows(self._taken(index)[1])

    def row(self, index: Array) -> list[Array]:
        """Gradients of one row, floating leaves in its own dtypes."""
        rows = as_stack(self._value_and_rows(index[None])[1], self.params)
        stack, *_ = self._scaled(rows, index[None], self.weights[index[None]])
        return [verbs.as_array(leaf, leaf.dtype)[0] for leaf in stack.leaves]

    def _scaled(
        self, stack: Stack, indices: Array, weights: Array
    ) -> tuple[Stack, Array, Array, tuple[Array, ...]]:
        """The rows with these indices, as they are looked at, and who of them is there.

        Returns:
          (rows, weights, how many are not finite, factors of what is done `WhenSeen`).
        """
        num_nonfinite, tested = jnp.zeros((), jnp.int32), False
        factors: list[Array] = []
        for each in self.scalings:
            if not isinstance(each, WhenSeen):
                leaves = [verbs.scale(leaf, each[indices]) for leaf in stack.leaves]
                stack, tested = stack._replace(leaves=leaves), False
                continue
            if not tested:
                weights, bad = present_weights(stack, weights)
                num_nonfinite += bad
            seen = Seen(Roster(weights, each.step, {}), num_nonfinite)
            decided, rows = decided_factors(each.scaling, Memory(stack.leaves, seen))
            scaled = rows.scaled(decided.factors, decided.sound, True)
            assert isinstance(scaled, Memory)
            stack, tested = stack._replace(leaves=[*scaled.leaves]), True
            weights, num_nonfinite = (
                scaled.seen.roster.weights,
                scaled.seen.num_nonfinite,
            )
            factors.append(jnp.where(weights > 0, decided.factors, jnp.nan))
        if not tested:
            weights, bad = present_weights(stack, weights)
            num_nonfinite += bad
        return stack, weights, num_nonfinite, tuple(factors)

    def _value_and_rows(self, indices: Array) -> tuple[Any, Any]:
        """Values and gradients of the rows with these indices."""
        return self._of_own(self.arranged.take(indices))

    def _of_own(self, own: Arranged) -> tuple[Any, Any]:
        """The same of some of the arguments."""
        return value_and_rows(self.fun, own, self.has_aux)

    def in_order(self, by_block: Tree) -> Tree:
        """Undoes the split: leaves (k, m, ...) to (B, ...) in the order of the rows."""

        def join(leaf: Array) -> Array:
            rows = leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:])
            return rows[: self.arranged.num_rows]

        return jax.tree.map(join, by_block)

    def joined(self, blocks: Array) -> Array:
        """Lower blocks (k, k, m, m) to the symmetric (B, B), in the rows' order."""
        count, size = self.indices.shape
        lower = jnp.arange(count)[:, None] >= jnp.arange(count)[None, :]
        mirrored = blocks.transpose(1, 0, 3, 2)
        full = jnp.where(lower[:, :, None, None], blocks, mirrored)
        joined = full.transpose(2, 0, 3, 1).reshape(count * size, count * size)
        num_rows = self.arranged.num_rows
        return joined[:num_rows, :num_rows]

    def of_devices(self, blocks: Array) -> Array:
        """(k, N m, ...), rows of N devices, to (N B, ...), device after device."""
        count, size = self.indices.shape
        num_rows, shape = self.arranged.num_rows, blocks.shape[2:]
        devices = blocks.shape[1] // size
        apart = blocks.reshape(count, devices, size, *shape)
        in_order = jnp.moveaxis(apart, 0, 2)  # (N, m, k, ...)
        rows = in_order.reshape(devices, size * count, *shape)[:, :num_rows]
        return rows.reshape(devices * num_rows, *shape)

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
