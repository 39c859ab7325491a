"""A look at all rows, and one more where that finds out what the first had to know.

A look may be most of a program, which is compiled once. Derivatives can be taken of it,
backward too, as not of a loop that ends when it may; but inside ``jax.shard_map``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax._rows.explicit import zeros_as
from consensus_optax._typing import Array

Given = TypeVar("Given")
Found = TypeVar("Found")


def at_most_twice(
    look: Callable[[Given], Found],
    asks: Callable[[Given, Found], tuple[Given, Array]],
    start: Given,
    varying: Callable[[Any], Any],
) -> tuple[Given, Found]:
    """What a look finds, or the second of two; and what that was given.

    Args:
      look: of what is given.
      asks: (what was given, what was found) to what to give to a second look, and
        whether there is to be one.
      start: what the first look is given.
      varying: types what the loop starts from as what is computed in it.
    """
    shapes = jax.eval_shape(look, start)
    empty = zeros_as(shapes)

    def then(given: Given, found: Found, first: Array) -> tuple[Given, Array]:
        other, more = asks(given, found)
        pick = lambda x, y: jnp.where(first, x, y)
        return jax.tree.map(pick, other, given), first & more

    def turn(carry: Any, first: Array) -> tuple[Any, None]:
        given, found, wanted = carry
        found = lax.cond(wanted, lambda: look(given), lambda: found)
        given, wanted = then(given, found, first)
        return (given, found, wanted), None

    def again(carry: Any) -> Any:
        given, _, first, _ = carry
        found = look(given)
        given, wanted = then(given, found, first)
        return varying((given, found, jnp.zeros((), bool), wanted))

    yes = jnp.ones((), bool)
    if jax.sharding.get_abstract_mesh().manual_axes:
        # there `jax.vmap` of `lax.cond` fails, if what varies over devices chooses
        # between branches that hold what does not
        carry = varying((start, empty, yes, yes))
        given, found, *_ = lax.while_loop(lambda carry: carry[3], again, carry)
        return given, found
    (given, found, _), _ = lax.scan(turn, (start, empty, yes), jnp.arange(2) == 0)
    return given, found
