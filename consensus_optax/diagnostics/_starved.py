"""Whether there are more rows than can agree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax._running.reducer import Reducer
from consensus_optax._typing import Tree

_LEAST = 0.01  # share of coordinates below which a model hardly trains
_MANY = 16  # rows from which on that is a finding of its own, whatever the rule


def starved(rows: Tree, params: Tree, reducer: Reducer | None) -> list[str]:
    """Says when less than 1 % of the coordinates are agreed on, and what would help.

    Args:
      rows: arrays (B, ...).
      params: what they are gradients of.
      reducer: the rule, or None for agreement of all rows in sign.

    Returns:
      No finding, or one.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    if reducer is None and num_rows < _MANY:
        return []
    try:
        ratio = _agreed(rows, params, reducer)
    except (TypeError, ValueError) as error:
        return [f"The reducer cannot reduce these rows. {error}"]
    if not ratio < _LEAST:
        return []
    called = "all rows agree in sign on" if reducer is None else f"{reducer} moves"
    text = (
        f"Of {num_rows} rows {called} {100 * ratio:.2g} % of the coordinates: "
        f"{'unanimous consensus' if reducer is None else 'it'} hardly trains."
    )
    for size in _divisors(num_rows):
        ratio = _agreed(_grouped(rows, size), params, reducer)
        if ratio >= 5 * _LEAST:
            return [
                f"{text} Of {num_rows // size} rows, `group_size=` {size} times as "
                f"large, it would be {100 * ratio:.2g} %."
            ]
    return [f"{text} Use fewer rows, by `group_size=`, or a lower quorum."]


def _divisors(num_rows: int) -> list[int]:
    """Sizes of equal groups, two of them at least."""
    sizes = range(2, num_rows // 2 + 1)
    return [size for size in sizes if num_rows % size == 0]


def _grouped(rows: Tree, size: int) -> Tree:
    """Means of so many rows each."""
    return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]).mean(1), rows)


def _agreed(rows: Tree, params: Tree, reducer: Reducer | None) -> float:
    """Share of coordinates that move."""
    if reducer is None:
        leaves = jax.tree.leaves(rows)
        same = lambda x: jnp.all(x > 0, 0) | jnp.all(x < 0, 0)
        total = sum(x[0].size for x in leaves)
        return float(sum(same(x).sum() for x in leaves)) / max(total, 1)
    state: Any = reducer.update(rows, reducer.init(params), params)[1]
    return float(state.consensus_ratio)
