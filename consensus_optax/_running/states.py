"""What the interpreter keeps around the states of rules."""

from __future__ import annotations

from typing import Any, NamedTuple

from consensus_optax._typing import Array, Count


class FoldState(NamedTuple):
    """State of a fold that remembers.

    Attributes:
      count: () int32, steps so far in which there was a row.
      arrays: by name one array for every floating leaf.
    """

    count: Count
    arrays: dict[str, list[Array]]


class AmongState(NamedTuple):
    """States of a selector and of the rule that its survivors are given to."""

    selector_state: Any
    rule_state: Any


class AfterState(NamedTuple):
    """States of what is done to rows first, and of the rule they are given to then."""

    step_state: Any
    rule_state: Any


class MemoryState(NamedTuple):
    """State of a weighting that remembers its previous update.

    Attributes:
      previous: that update, one array for every floating leaf.
      rule_state: the rule's own state.
    """

    previous: list[Array]
    rule_state: Any
