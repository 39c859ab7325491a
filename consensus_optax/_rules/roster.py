"""What rules are told of the rows, and what they may ask to read of them."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import jax.numpy as jnp

from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.coordinates import ALL, Coordinates
from consensus_optax._typing import Count, Marked, Number, Order, PerRow, Tree

# Keywords of ``update`` that rules of this library read, besides the weights.
WORDS = ("weights", "values", "span_hessian", "target")

# Another one, of whoever hands round what no bound and no noise protects.
UNPROTECTED = "control_variates"


class AllRows(NamedTuple):
    """What is known of all rows where a rule is told about some of them.

    Attributes:
      num_rows: how many there are, present or not.
      total: () what they weigh, as far as is known.
    """

    num_rows: int
    total: Number


class Roster(NamedTuple):
    """What a rule is told about the rows, besides what it may read of their gradients.

    Attributes:
      weights: (B,), float32 or float64; 0 = not there. A row with a non-finite entry
        has weight 0 here, whatever the caller said.
      step: () int32, number of updates made before this one: schedules, random keys.
      extra: further keyword arguments of ``update``, unchanged.
      scale: () what rows were multiplied by ahead of the products that a rule reads,
        nearly always 1, or (B,); see :class:`Weighting`.
      coordinates: sums over all coordinates of a leaf, where not all are at hand.
      num_leaves: how many leaves decide, each for itself; 1 where all decide together.
      like: shapes of the parameters that rows are gradients of, a tree.
      of: all rows where these are some of them, else None.
    """

    weights: PerRow
    step: Count
    extra: dict[str, Any]
    coordinates: Coordinates = ALL
    scale: PerRow | Number | float = 1.0
    num_leaves: int = 1
    like: Tree = None
    of: AllRows | None = None

    @property
    def present(self) -> Marked:
        """(B,) bool: which rows are there."""
        return self.weights > 0

    @property
    def shares(self) -> PerRow:
        """(B,) weights divided by those of all rows; all 0 if no row is there."""
        return self.weights / positive_or_one(self.total)

    @property
    def num_rows(self) -> int:
        """How many rows there are in all, present or not."""
        return self.of.num_rows if self.of else self.weights.shape[0]

    @property
    def total(self) -> Number:
        """() what all rows weigh."""
        return self.of.total if self.of else self.weights.sum()

    @property
    def order(self) -> Order:
        """(B,) int32: i where row i is there, else the first row that is."""
        first = jnp.argmax(self.present)
        indices = jnp.arange(self.weights.shape[0])
        return jnp.where(self.present, indices, first).astype(jnp.int32)


class Reads(enum.StrEnum):
    """What a weighting or a mixing may read of the rows; compares equal to its word."""

    GRAMIAN = "gramian"
    CENTERED = "centered"
    AFFINE = "affine"
    SIGNS = "signs"
    NORMS = "norms"
    NORM_BOUNDS = "norm_bounds"
    TOWARD = "toward"
    NOTHING = "nothing"

    @property
    def pairs(self) -> bool:
        """Whether products of pairs of rows are read, not of each row alone."""
        return not self.lengths and self not in (Reads.TOWARD, Reads.NOTHING)

    @property
    def lengths(self) -> bool:
        """Whether what is read is the length of each row, or a bound of it."""
        return self in (Reads.NORMS, Reads.NORM_BOUNDS)
