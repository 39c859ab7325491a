"""One backward pass over all rows, which keeps of each leaf what is made of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax._gradients.arguments import Arranged
from consensus_optax._gradients.claims import Claim, Reduced
from consensus_optax._gradients.per_example import value_and_reduced
from consensus_optax._rows import verbs
from consensus_optax._rows.finite import finite_rows
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rows.sums import each_part
from consensus_optax._rows.verbs import Leaf, decision_dtype
from consensus_optax._rules.coordinates import ALL
from consensus_optax._rules.kinds import Roster
from consensus_optax._running.memory import Memory
from consensus_optax._running.source import Seen
from consensus_optax._typing import Array, Tree
from consensus_optax.engines.backward.dealing import Dealing

# Of rows and the claim on them, to what adds up over layers, and what is like the
# parameter, trees of arrays both.
Read = Callable[[Memory, Claim], tuple[Any, Any]]


class Found(NamedTuple):
    """What one pass found.

    Attributes:
      value: what the function returned for each row.
      finite: (B,) bool, which rows have no inf or nan in any leaf.
      made: of leaves that were reduced inside, by number, what was made of them.
      rest: the other leaves, by number: small ones, and those outside of scans.
    """

    value: Any
    finite: Array
    made: dict[int, Reduced]
    rest: dict[int, Leaf]


class Batch(NamedTuple):
    """What rows are computed of.

    Attributes:
      fun: the loss of one row, (value, aux) with ``has_aux``.
      has_aux: whether it returns aux.
      arranged: its arguments, of all rows.
      params: the argument or arguments that are differentiated.
      dealing: where rows lie, if each is computed by one of many devices.
      scalings: (B,) each, what rows are multiplied by, one after the other.
    """

    fun: Callable[..., Any]
    has_aux: bool
    arranged: Arranged
    params: Tree
    dealing: Dealing | None = None
    scalings: tuple[Array, ...] = ()

    @property
    def dtype(self) -> Any:
        """In which rules decide."""
        return decision_dtype(self.params)

    def losses(self, value: Any) -> Array:
        """The losses in what the function returned for every row."""
        return value[0] if self.has_aux else value

    def scaled(self, rows: Leaf) -> Any:
        """Rows as they are looked at."""
        return functools.reduce(verbs.scale, self.scalings, rows)

    def read(
        self,
        roster: Roster,
        read: Read,
        likes: Sequence[Any] | None = None,
        together: bool = True,
    ) -> Found:
        """One pass.

        Args:
          roster: which rows are there, as far as is known.
          read: what to make of one leaf, or of one layer's part of it, there and then.
          likes: an update, of which claims have what belongs to their part.
          together: whether that takes several rows at once.
        """

        def reduce(claim: Claim, rows: Leaf) -> Reduced:
            if is_outer_product(rows) and (self.dealing is not None or not rows.size):
                rows = rows.materialize()  # each on its own device, or of no entries
            whole = self.scaled(_as_decided(rows, claim.dtype))
            rows = whole if self.scalings else rows
            bad = (~finite_rows([whole], self.dtype)).astype(jnp.int32)
            if self.dealing is None or not together:
                sums, made = read(in_memory([whole], roster), claim)
                return Reduced((bad, sums), made)

            def of_part(rows: Any, like: Any) -> tuple[Any, Any]:
                own = in_memory([rows.astype(whole.dtype)], roster)
                return read(own, claim._replace(like=like))

            sums, made = self.dealing.of_coordinates(of_part, rows, claim)
            return Reduced((bad, sums), made)

        value, leaves = value_and_reduced(
            self.fun, self.arranged, self.has_aux, reduce, likes
        )
        made = {i: x for i, x in enumerate(leaves) if isinstance(x, Reduced)}
        rest: Any = {i: self.scaled(x) for i, x in enumerate(leaves) if i not in made}
        finite = jnp.ones(roster.weights.shape, bool)
        if rest:
            finite = finite_rows(list(rest.values()), self.dtype)
        for leaf in made.values():
            finite &= leaf.sums[0] == 0
        made = {i: Reduced(x.sums[1], x.likes) for i, x in made.items()}
        return Found(value, finite, made, rest)


def _as_decided(rows: Leaf, dtype: Any) -> Leaf:
    """Rows in their parameter's dtype, whatever the variable's is."""
    if is_outer_product(rows):
        return each_part(lambda part: dataclasses.replace(part, dtype=dtype), rows)
    return rows.astype(dtype)


def in_memory(leaves: Sequence[Leaf], roster: Roster) -> Memory:
    """Some leaves, as if they were all."""
    whole = roster._replace(coordinates=ALL)
    return Memory(leaves, Seen(whole, jnp.zeros((), jnp.int32)))


def zeros_like(shapes: Tree) -> Tree:
    """Zeros of these shapes."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
