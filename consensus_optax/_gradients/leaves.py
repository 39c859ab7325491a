"""Leaves of arguments: which can lead with an axis, be differentiated, or only pass."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax._gradients.names import kind_of


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, or the shape of one, that JAX can compute with."""
    dtype = getattr(leaf, "dtype", None)
    numeric = getattr(dtype, "kind", "V") not in "OSUMm"  # objects, strings, dates
    return dtype is not None and hasattr(leaf, "shape") and numeric


def named_leaves(position: int, arg: Any) -> list[tuple[str, Any]]:
    """Leaves of an argument with what messages call them."""
    flat, _ = jax.tree_util.tree_flatten_with_path(arg)
    name = lambda path: f"argument {position}{jax.tree_util.keystr(path)}"
    return [(name(path), leaf) for path, leaf in flat]


def taken_apart(arg: Any) -> tuple[Any, Any]:
    """A module as (what is differentiated, what passes), None where the other has it.

    A module is a tree with leaves that are no numbers, as Equinox has them: functions,
    flags, strings. Its parameters are its floating arrays, and no numbers of Python,
    which say how it computes. Of any other tree nothing passes: (arg, None).
    """
    if all(map(_is_number, jax.tree.leaves(arg))):
        return arg, None
    moves = lambda leaf: is_array(leaf) and _is_floating(leaf)
    differentiated = jax.tree.map(lambda leaf: leaf if moves(leaf) else None, arg)
    return differentiated, jax.tree.map(lambda leaf: None if moves(leaf) else leaf, arg)


def put_together(differentiated: Any, passing: Any) -> Any:
    """The module of two such parts."""
    either = lambda x, other: other if x is None else x
    is_none = lambda x: x is None
    return jax.tree.map(either, differentiated, passing, is_leaf=is_none)


def check_differentiable(position: int, arg: Any) -> None:
    """Raises unless all leaves are floating: numbers, or arrays of them."""
    for name, leaf in named_leaves(position, arg):
        if not _is_number(leaf) or not _is_floating(leaf):
            of_flax = any(x.__module__.startswith("flax.nnx") for x in type(arg).mro())
            raise ValueError(
                "Every leaf of a differentiated argument must be floating; "
                f"{name} is {kind_of(leaf)}. "
                + (_FLAX if of_flax else "Hand it over in another argument, that ")
                + ("" if of_flax else "`argnums` does not name.")
            )


_FLAX = (
    "Of an NNX model `consensus_optax.training.nnx_value_and_rows` takes the "
    "parameters, and keeps random streams and statistics."
)


def _is_number(leaf: Any) -> bool:
    is_one = isinstance(leaf, int | float | complex) and not isinstance(leaf, bool)
    return is_array(leaf) or is_one


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
