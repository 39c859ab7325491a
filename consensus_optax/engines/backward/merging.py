"""What is made of some rows, and merges with what is made of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from consensus_optax._gradients.claims import Claim
from consensus_optax._rows.statistics import WEIGHTED_SUM, Statistic
from consensus_optax._rules.kinds import Fold
from consensus_optax._running.memory import Memory
from consensus_optax._typing import Array


class Merging(NamedTuple):
    """Statistics of one leaf's rows, wherever those lie.

    Attributes:
      statistics: how they merge.
      observe: of rows, and of what is given for each, to every statistic of them.
      given: of a claim, (B,) or None.
    """

    statistics: Sequence[Statistic]
    observe: Callable[[Memory, Any], tuple[Any, ...]]
    given: Callable[[Claim], Array | None] = lambda claim: None

    def read(self, rows: Memory, claim: Claim) -> tuple[tuple[()], tuple[Any, ...]]:
        """Of all rows: nothing that adds up, and what is like a row."""
        return (), self.observe(rows, self.given(claim))


def of_fold(rule: Fold) -> Merging:
    """A fold's own."""

    def observe(rows: Memory, given: None) -> tuple[Any, ...]:
        del given
        return tuple(leaf for (leaf,) in rows.statistics(rule)[0])

    return Merging(rule.statistics, observe)


def of_combination(weights: Array) -> Merging:
    """The sum of rows with weights of either sign, (B,), or (leaves, B)."""
    # taken apart here, for where rows are dealt out nothing else may be cut
    apart = [weights[i] for i in range(len(weights))] if weights.ndim == 2 else []
    given = lambda claim: apart[claim.leaf] if apart else weights
    observe = lambda rows, own: tuple(rows.combine(own))
    return Merging((WEIGHTED_SUM,), observe, given)
