"""What a pass over rows finds, and rows of some leaves as if they were all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from consensus_optax._gradients.claims import Claim, Reduced
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rows.sums import each_part
from consensus_optax._rows.verbs import AnyLeaf, Leaf
from consensus_optax._rules.coordinates import ALL
from consensus_optax._rules.kinds import Roster
from consensus_optax._running.memory import Memory
from consensus_optax._running.source import Seen
from consensus_optax._typing import Array

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
    rest: dict[int, AnyLeaf]


def in_memory(leaves: Sequence[AnyLeaf], roster: Roster) -> Memory:
    """Some leaves, as if they were all."""
    whole = roster._replace(coordinates=ALL)
    return Memory(leaves, Seen(whole, jnp.zeros((), jnp.int32)))


def as_decided(rows: Leaf, dtype: Any) -> Leaf:
    """Rows in their parameter's dtype, whatever the variable's is."""
    if is_outer_product(rows):
        return each_part(lambda part: dataclasses.replace(part, dtype=dtype), rows)
    return rows.astype(dtype)
