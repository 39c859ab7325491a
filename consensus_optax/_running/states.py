"""What the interpreter keeps around the states of rules."""

from __future__ import annotations

from typing import Any, NamedTuple

from consensus_optax._typing import Count, Tree


class FoldState(NamedTuple):
    """State of a fold that remembers.

    Attributes:
      count: () int32, steps so far in which there was a row.
      arrays: by name a tree like the parameters, float32 at least.
    """

    count: Count
    arrays: dict[str, Tree]


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
      previous: that update, like the parameters, float32 at least.
      rule_state: the rule's own state.
    """

    previous: Tree
    rule_state: Any
