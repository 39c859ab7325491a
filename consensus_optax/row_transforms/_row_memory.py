"""What every row remembers: kept by the number of the row, or of its client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._rows.finite import cleared, finite_rows, spoiled
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._rows.stack import as_rows, checked_weights
from consensus_optax._rows.trees import floating, memory, no_params
from consensus_optax._typing import Array, Tree

Turn = Callable[[Any, Array, int], tuple[Any, Array]]


def no_memory_yet(num_rows: int, params: Tree) -> Tree:
    r"""Zeros (num_rows, \*shape) for every floating leaf, in float32 at least."""

    def zeros(param: Any) -> Array:
        return jnp.zeros((num_rows, *param.shape), verbs.decision_dtype(param))

    return no_params(params, memory(params, zeros))


def remembered(
    turn: Turn,
    updates: Tree,
    kept: Tree,
    params: Tree | None,
    weights: Array | None,
    clients: Any,
    can_overflow: bool = False,
) -> tuple[Tree, Tree]:
    """Rows that go out, and the memory after them.

    A row that is away, of weight 0 or no client, or has a non-finite entry, leaves its
    memory as it is, bit for bit; the latter goes out as nan.

    Args:
      turn: (rows of a leaf, what they remember, number of the leaf) to (rows, memory).
      updates: rows.
      kept: from :func:`no_memory_yet`.
      params: the parameters, or None.
      weights: which rows are there, (B,), or None.
      clients: whose rows they are, (B,) integers; None: row i is i's.
      can_overflow: whether finite rows may be remembered as infinite: they are kept
        from that, and go out as nan.
    """
    leaves, dtype = as_rows(updates, params)
    if not leaves:
        return updates, kept
    flat, treedef = jax.tree.flatten(updates, is_leaf=is_outer_product)
    olds = treedef.flatten_up_to(kept)
    moving = list(map(floating, flat))
    pairs = [
        x for x, yes in zip(zip(flat, olds, strict=True), moving, strict=True) if yes
    ]
    num_rows, num_kept = leaves[0].shape[0], pairs[0][1].shape[0]
    clients = checked_clients(clients, num_rows)
    _check_counts(num_rows, num_kept, clients)
    finite = finite_rows(leaves, dtype)
    moves = finite & (checked_weights(weights, num_rows, dtype) > 0)
    made = []
    for number, (leaf, old) in enumerate(pairs):
        own = old if clients is None else taken(old, clients)
        made.append((*turn(cleared(leaf, finite), own, number), own, old))
    if can_overflow:
        stays = finite_rows([new for _, new, _, _ in made], dtype)
        finite, moves = finite & stays, moves & stays
    rows = iter([spoiled(row, finite) for row, *_ in made])
    news = iter([put(old, new, own, moves, clients) for _, new, own, old in made])
    outgoing = [next(rows) if yes else x for x, yes in zip(flat, moving, strict=True)]
    news = [next(news) if yes else x for x, yes in zip(olds, moving, strict=True)]
    return jax.tree.unflatten(treedef, outgoing), jax.tree.unflatten(treedef, news)


def taken(kept: Array, clients: Array) -> Array:
    """What some clients remember; zeros for who is none."""
    options = {"mode": "fill", "fill_value": 0, "wrap_negative_indices": False}
    return kept.at[clients].get(**options)


def put(
    kept: Array, new: Array, old: Array, moves: Array, clients: Array | None
) -> Array:
    """The memory with new entries of those who move; ``old`` are their own.

    Of a client that moves in several rows the first one is remembered.
    """
    if clients is None:
        return jnp.where(moves.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    nobody = kept.shape[0]
    places = jnp.where(are_put(moves, clients, nobody), clients, nobody)
    return kept.at[places].set(new.astype(kept.dtype), mode="drop")


def are_put(moves: Array, clients: Array, num_kept: int) -> Array:
    """Whose entry :func:`put` takes, (B,) bool: of each client's rows the first."""
    same = (clients[:, None] == clients[None, :]) & moves[None, :]
    first = jnp.argmax(same, 1) == jnp.arange(clients.shape[0])
    return moves & first & (clients >= 0) & (clients < num_kept)


def checked_clients(clients: Any, num_rows: int) -> Array | None:
    """Whose rows they are, (B,) int32, or None.

    Raises:
      ValueError: there is not one for every row, or they are no integers.
    """
    if clients is None:
        return None
    wanted = f"an array ({num_rows},) of integers, one for every row"
    given = _check.array("clients", clients, wanted, ".")
    if given.shape != (num_rows,) or not jnp.issubdtype(given.dtype, jnp.integer):
        found = f"{given.dtype} {given.shape}"
        raise ValueError(f"`clients` must be {wanted}; got {found}.")
    return given.astype(jnp.int32)


def _check_counts(num_rows: int, num_kept: int, clients: Array | None) -> None:
    """Raises unless there is one memory for every row, or whose they are is known."""
    if clients is None and num_rows != num_kept:
        raise ValueError(
            f"`num_rows` must be the number of rows of the stack; got {num_kept}, but "
            f"the rows are {num_rows}. Pad with rows of weight 0, or say whose rows "
            "they are: `update(..., clients=indices)`."
        )
