"""A reducer's step on explicit mesh axes, where types say how rows are cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from consensus_optax._rows.explicit import automatic, explicit_mesh, spec_of
from consensus_optax._rows.stack import Stack

Step = Callable[..., tuple[list[Any], Any]]


def on_any_mesh(
    step: Step, stack: Stack, weights: Any, state: Any, extra: dict[str, Any]
) -> tuple[list[Any], Any]:
    """``step(stack, weights, state, extra)``, with explicit axes automatic meanwhile.

    Updates come out cut as their parameters are, the new state as the old one is.
    """
    given = (stack.leaves, weights, state, extra)
    if explicit_mesh(_arrays(given)) is None:
        return step(stack, weights, state, extra)
    leaves, treedef = jax.tree.flatten(given)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def of_arrays(*arrays: Any) -> tuple[list[Any], Any]:
        known = dict(zip(places, arrays, strict=True))
        whole = [known.get(i, leaf) for i, leaf in enumerate(leaves)]
        rows, *rest = jax.tree.unflatten(treedef, whole)
        return step(stack._replace(leaves=rows), *rest)

    specs = ([_spec(param) for param in stack.params], jax.tree.map(_spec, state))
    return automatic(of_arrays, [leaves[i] for i in places], specs)


def _arrays(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]


def _spec(leaf: Any) -> PartitionSpec:
    return spec_of(leaf) if isinstance(leaf, jax.Array) else PartitionSpec()
