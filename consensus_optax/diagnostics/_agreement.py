"""What a probe says of leaves together: of all, of a group, of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.kinds import Known
from consensus_optax._typing import Array, Tree
from consensus_optax.diagnostics._coherence import coherence
from consensus_optax.diagnostics._cosines import conflicting_share
from consensus_optax.diagnostics._noise_scale import estimates, noise_scale

Labels = Tree | Callable[[Tree], Tree]


class Agreement(NamedTuple):
    """Numbers of some leaves; the second is None where norms alone are read."""

    coherence: Array
    conflicting_share: Array | None
    gradient_squared: Array
    noise_trace: Array


def agreement(known: Known, leaves: list[int], group_size: int) -> Agreement:
    """That of these leaves together."""
    weights = known.weights
    products = sum_of(known.products, leaves)
    if known.of_mean is None:
        noise = noise_scale(products, weights, group_size)
        together = coherence(products, weights), conflicting_share(products, weights)
        return Agreement(*together, *noise[:2])
    squares = jnp.where(weights > 0, products, 0)
    of_mean = sum_of(known.of_mean, leaves)
    shares = weights / positive_or_one(weights.sum())
    apart = jnp.matmul(shares**2, squares, precision=lax.Precision.HIGHEST)
    own = jnp.where(apart > 0, of_mean / positive_or_one(apart), 0)
    return Agreement(own, None, *estimates(of_mean, squares, weights, group_size)[:2])


def sum_of(stacked: Array, leaves: list[int]) -> Array:
    """The sum over leaves; of the others nothing need be computed."""
    parts = [stacked[i] for i in leaves]
    return sum(parts[1:], parts[0])


def floating(like: Tree) -> list[bool]:
    """Which leaves have a gradient."""
    leaves = jax.tree.leaves(like)
    return [bool(jnp.issubdtype(leaf.dtype, jnp.floating)) for leaf in leaves]


def labelled(name: str, labels: Labels, like: Tree) -> list[Any]:
    """The label of every floating leaf, as ``optax.partition`` has labels.

    Args:
      name: of the argument, for errors.
      labels: a tree like the parameters, or one whose leaves stand for subtrees, or a
        function of the parameters, of which it is shown shapes, that gives one.
      like: shapes of the parameters.
    """
    given = labels(like) if callable(labels) else labels
    spread = lambda label, part: jax.tree.map(lambda _: label, part)
    try:
        each = jax.tree.leaves(jax.tree.map(spread, given, like))
    except (ValueError, TypeError):
        raise ValueError(
            f"`{name}` must be a tree like the parameters, of a label for every leaf "
            "or subtree, or a function that makes one of them; got another structure."
        ) from None
    return [label for label, moves in zip(each, floating(like), strict=True) if moves]


def leaf_names(params: Tree) -> Tree:
    """Every leaf's own path, for ``probe(groups=leaf_names)``: numbers of every leaf.

    Args:
      params: tree of parameters.

    Returns:
      A tree like it, of strings.

    Examples:
      >>> import jax.numpy as jnp
      >>> leaf_names({"a": jnp.zeros(2), "b": [jnp.zeros(())]})
      {'a': "['a']", 'b': ["['b'][0]"]}
    """
    name = lambda path, _: jax.tree_util.keystr(path) or "(root)"
    return jax.tree_util.tree_map_with_path(name, params)
