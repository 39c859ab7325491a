"""What sums of clipped rows share: weights that no row can make larger than it may."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rows.rounding import of_one_more
from consensus_optax._rules.arithmetic import root
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._typing import Count, Marked, Number, PerRow, Threshold, Tree

METHODS = ("threshold", "automatic")
_MOST_LOST = 0.5  # of the norm, for rounding


class ClippedState(NamedTuple):
    """State of a sum of clipped rows; a leading axis over leaves if clipped by leaf.

    What it says of the rows is not private: look at it, but do not publish it.

    Attributes:
      max_norm: () the norm that the next step clips to; private where it adapts.
      num_clipped: () int32, how many rows the last step made shorter.
    """

    max_norm: Number
    num_clipped: Count


class Clipping(NamedTuple):
    """How rows are clipped and summed.

    Attributes:
      max_norm: C, a number, array or schedule.
      divisor: what the sum is divided by.
      method: ``"threshold"`` or ``"automatic"``.
      stability: of automatic clipping.
      per_leaf: whether every leaf is clipped to its share of C.
    """

    max_norm: Threshold
    divisor: float
    method: str
    stability: Threshold
    per_leaf: bool

    def checked(self) -> Clipping:
        """The same, or a ValueError that names the argument."""
        _check.interval("max_norm", self.max_norm, 0, open_high=True)
        _check.static_number("divisor", self.divisor, 1e-9)
        _check.one_of("clipping", self.method, METHODS)
        _check.interval("stability", self.stability, 0, open_low=True)
        _check.flag("per_leaf", self.per_leaf)
        return self

    @property
    def sensitivity(self) -> Threshold:
        """C / divisor: a number, or what the schedule makes of the step."""
        max_norm, divisor = self.max_norm, float(self.divisor)
        if callable(max_norm):
            return lambda step: max_norm(step) / divisor
        traced = isinstance(max_norm, jax.core.Tracer)
        return max_norm / divisor if traced else float(max_norm) / divisor

    def norm_at(self, step: Count, dtype: Any) -> Number:
        """C at this step, 0 where the schedule gives no norm."""
        value = _check.value_at(self.max_norm, step, dtype)
        return jnp.where(value >= 0, value, 0)

    def init(self, params: Tree, dtype: Any) -> ClippedState:
        """The state before the first step."""
        del params
        first = self.norm_at(jnp.zeros((), jnp.int32), dtype)
        return ClippedState(first, jnp.zeros((), jnp.int32))

    def weights(
        self,
        squares: PerRow,
        roster: Roster,
        max_norm: Number,
    ) -> tuple[PerRow, Marked]:
        """Weights (B,), and which rows are made shorter, (B,) bool.

        Args:
          squares: of bounds of the rows' norms.
          roster: which are there.
          max_norm: C, of all leaves together.
        """
        count, dtype = roster.num_rows, roster.weights.dtype
        lost = of_one_more(count, dtype)
        if lost > _MOST_LOST:
            raise ValueError(
                f"Rows must be few enough for what one more changes to be told in "
                f"{dtype}, {_most_rows(dtype)} at the most; got {count}. Take fewer, "
                "or float64 parameters."
            )
        limit = max_norm * (1 - lost) / math.sqrt(roster.num_leaves)
        norms = roster.weights * root(squares)
        if self.method == "automatic":
            stability = _check.value_at(self.stability, roster.step, dtype)
            scales = limit / (norms + stability)
            shorter = scales < 1
        else:
            shorter = norms > limit
            scales = jnp.where(shorter, limit / jnp.where(shorter, norms, 1), 1)
        weights = roster.weights * scales / self.divisor
        # what is out of reach costs its own row, where a rule's weights would all go
        kept = roster.present & jnp.isfinite(weights)
        return jnp.where(kept, weights, 0), shorter & roster.present

    def weighting(self) -> Weighting:
        """The rule that sums clipped rows."""

        def weigh(
            squares: PerRow, roster: Roster, state: ClippedState
        ) -> tuple[PerRow, ClippedState]:
            del state
            dtype = roster.weights.dtype
            now = self.norm_at(roster.step, dtype)
            weights, shorter = self.weights(squares, roster, now)
            after = self.norm_at(roster.step + 1, dtype)
            return weights, ClippedState(after, shorter.sum(dtype=jnp.int32))

        return Weighting(
            weigh,
            self.init,
            reads=Reads.NORM_BOUNDS,
            per_leaf=self.per_leaf,
            apart="weight",
        )


def _most_rows(dtype: Any) -> int:
    """The largest power of 2 for which rounding takes no more than it may."""
    count = 1
    while of_one_more(2 * count, dtype) <= _MOST_LOST:
        count *= 2
    return count
