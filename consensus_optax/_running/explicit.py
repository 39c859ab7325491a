"""A reducer's step on explicit mesh axes, where types say how rows are cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from consensus_optax._rows.explicit import freed, spec_of
from consensus_optax._rows.stack import Stack

Step = Callable[..., tuple[list[Any], Any]]


def on_any_mesh(
    step: Step, stack: Stack, weights: Any, state: Any, extra: dict[str, Any]
) -> tuple[list[Any], Any]:
    """``step(stack, weights, state, extra)``, with explicit axes automatic meanwhile.

    Updates come out cut as their parameters are, the new state as the old one is.
    """
    of_rows = lambda rows, *rest: step(stack._replace(leaves=rows), *rest)
    specs = ([_spec(param) for param in stack.params], jax.tree.map(_spec, state))
    return freed(of_rows, (stack.leaves, weights, state, extra), specs)


def _spec(leaf: Any) -> PartitionSpec:
    return spec_of(leaf) if isinstance(leaf, jax.Array) else PartitionSpec()
