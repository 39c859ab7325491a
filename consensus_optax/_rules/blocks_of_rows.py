"""Work for every row by itself, a block of rows at a time: B x B numbers stay few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._typing import Array

_ROWS = 128  # loops over fewer are no slower for one more, on CPU


def by_blocks(function: Callable[[Array, Array], Any], count: int) -> Any:
    """function(indices, there) of one block of rows after the other, stacked.

    Args:
      function: (b,) numbers of rows and (b,) bool, which of them are not only
        there to fill the last block, to a tree of arrays.
      count: B.
    """
    size = min(count, _ROWS)
    numbers = jnp.arange(-(-count // size) * size).reshape(-1, size)
    work = lambda block: function(jnp.minimum(block, count - 1), block < count)
    if len(numbers) == 1:
        return jax.tree.map(lambda leaf: leaf[None], work(numbers[0]))
    return lax.map(work, numbers)
