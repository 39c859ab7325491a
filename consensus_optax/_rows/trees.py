"""Trees of rows beside trees of parameters: paths, pairs, and where two differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._typing import Array, Tree


def arrays_of(params: Tree) -> Tree:
    """Parameters with arrays for Python's numbers, which ``jax.grad`` takes as well.

    Raises:
      ValueError: a leaf is neither, naming it.
    """

    def as_array(path: Any, leaf: Any) -> Any:
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            return leaf
        if isinstance(leaf, bool | int | float | complex):
            return jnp.asarray(leaf)
        raise ValueError(
            f"Parameters must be arrays or numbers; {leaf_name(path)} is "
            f"a {type(leaf).__name__}. Keep it apart, as a static field or by a "
            "partition into what is trained and what is not."
        )

    return jax.tree_util.tree_map_with_path(as_array, params)


def floating(leaf: Any) -> bool:
    """Whether the leaf has a gradient."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def floating_leaves(params: Tree) -> list[Array]:
    """The leaves that have a gradient, in order."""
    return list(filter(floating, jax.tree.leaves(params)))


def refilled(tree: Tree, leaves: Iterable[Any]) -> Tree:
    """The tree with these in place of its floating leaves."""
    new = iter(leaves)
    return jax.tree.map(lambda leaf: next(new) if floating(leaf) else leaf, tree)


def rows_like(rows: Tree, leaves: Sequence[Any]) -> Tree:
    """A tree like these rows, of other floating leaves, and as many rows as these.

    Other leaves carry no gradient: of them the shape alone is looked at.
    """
    new, num_rows = iter(leaves), leaves[0].shape[0]

    def of_leaf(leaf: Any) -> Any:
        if floating(leaf):
            return next(new)
        return jax.ShapeDtypeStruct((num_rows, *leaf.shape[1:]), leaf.dtype)

    return jax.tree.map(of_leaf, rows, is_leaf=is_outer_product)


def memory(params: Tree, make: Callable[[Any], Array]) -> Tree:
    """What is made of every floating leaf, in a tree like the parameters.

    Whoever looks for parameters in states, by ``optax.tree.map_params`` or by paths,
    finds these. In place of other leaves False stands.
    """
    nothing = lambda: jnp.zeros((), bool)
    return jax.tree.map(
        lambda leaf: make(leaf) if floating(leaf) else nothing(), arrays_of(params)
    )


def no_params(params: Tree, tree: Tree) -> Tree:
    """A memory of other shapes than the parameters have, whose shardings fit not.

    ``optax.tree.map_params`` calls ``init`` with a tree that has no leaves, to see
    where that comes out again; here it does not.
    """
    return tree if jax.tree.leaves(params) else jnp.zeros(())


def shapes_of(params: Tree) -> Tree:
    """Shapes and dtypes of parameters, for who need not know their values."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


def leaf_name(path: Any) -> str:
    """What messages call a leaf."""
    return f"leaf `{jax.tree_util.keystr(path) or '(root)'}`"


def pair(
    updates: Tree, params: Tree, called: str = "rows"
) -> tuple[list[str], list[Any], list[Any], Any]:
    """Leaves of updates with those of parameters: (names, updates, params, structure).

    Raises:
      ValueError: the trees differ, naming the first place where they do.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(
        updates, is_leaf=is_outer_product
    )
    given: list[Any] | None
    try:
        given = treedef.flatten_up_to(params)
    except ValueError:
        given = None
    if given is None or not jax.tree_util.all_leaves(given):
        found = _difference(updates, params, (), called)
        raise ValueError(
            f"The {called} and `params` must be trees of one structure; {found}. Are "
            f"these the {called} of other parameters, or of a part of them?"
        )
    names = [leaf_name(path) for path, _ in flat]
    return names, [leaf for _, leaf in flat], given, treedef


def _difference(updates: Tree, params: Tree, path: Any, called: str) -> str | None:
    """The first place where two trees differ, in words; None if they do not."""
    whole = f"`{jax.tree_util.keystr(path)}`" if path else "the root"
    kinds = [_kind(updates), _kind(params)]
    if kinds[0] != kinds[1]:
        return f"at {whole} the {called} have {kinds[0]}, `params` {kinds[1]}"
    if kinds[0] == _LEAF:
        return None
    ours, theirs = _children(updates), _children(params)
    for key in [*ours, *theirs]:
        inside = f"`{jax.tree_util.keystr((*path, key))}`"
        if key not in theirs:
            return f"the {called} have {inside}, which `params` have not"
        if key not in ours:
            return f"the {called} have no {inside}, which `params` have"
        found = _difference(ours[key], theirs[key], (*path, key), called)
        if found:
            return found
    if _level(updates)[1] != _level(params)[1]:
        return f"at {whole} they are {kinds[0]} of different static fields"
    return None


_LEAF = "a leaf"


def _kind(tree: Tree) -> str:
    """Whether this is a leaf, else of which type."""
    if tree is None:
        return "None"
    is_leaf = is_outer_product(tree) or jax.tree_util.all_leaves([tree])
    return _LEAF if is_leaf else f"a {type(tree).__name__}"


def _level(tree: Tree) -> Any:
    """Children with their paths, and what they are children of."""
    below: Callable[[Any], bool] = lambda x: x is not tree
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=below)


def _children(tree: Tree) -> dict[Any, Any]:
    """Children by their key."""
    return {path[0]: child for path, child in _level(tree)[0]}
