"""Rows combined in one look, with weights that no gradient is read for.

Nobody has looked at these rows, so all are taken to be sound; where weights depend on
losses, as of rows of small loss, these come of a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax._gradients.dependence import reached, tasks_of
from consensus_optax._rows.explicit import zeros_as
from consensus_optax._running.again import at_most_twice
from consensus_optax._typing import Array

# What a look tells: weights of sound rows, how many are not, what the function returned
# for each, and whatever else.
Told = tuple[Any, ...]


def itself(weights: Array) -> Array:
    """Of weights that are those of the rows at hand."""
    return weights


def combined_on_trust(
    source: Any,
    weigh: Callable[[Any], Array],
    own: Callable[[Array], Array],
    combine: Callable[[Array, Array], tuple[list[Array], Told]],
    knowing: Callable[..., Any],
    values: Callable[[], Any],
    varying: Callable[[Any], Any],
) -> tuple[list[Array], Any]:
    """What rows combine to, with weights that no look is needed for; and the source.

    Where the look tells that a row is not sound, or a value otherwise, and weights
    depend on it, it is done again.

    Args:
      source: of the rows; ``known`` if somebody has looked at them.
      weigh: a source that has been looked at, to weights: of its rows, or of more.
      own: of what ``weigh`` gives to that of these rows.
      combine: (weights of sound rows, weights to combine with) to what that gives, and
        what the look tells.
      knowing: what a look tells, to the source that has been looked at.
      values: computes what the function returns for each row, and no gradient.
      varying: see :func:`at_most_twice`.
    """
    if source.known:
        weights = own(weigh(source))
        return combine(source.seen.roster.weights, weights)[0], source
    look = lambda given: combine(given[0], own(given[1]))

    def asks(given: Any, found: Any) -> tuple[Any, Array]:
        told = found[1]
        weights = weigh(knowing(*told))
        return (told[0], weights), jnp.any(weights != given[1])

    sound = jnp.maximum(source.seen.roster.weights, 0)
    _, told = jax.eval_shape(combine, sound, sound)
    none, value, *rest = zeros_as(told[1:])
    guess = lambda value: weigh(knowing(sound, none, value, *rest))
    first = guess(values() if _matters(guess, value) else value)
    _, (update, told) = at_most_twice(look, asks, (sound, first), varying)
    return update, knowing(*told)


def _matters(function: Callable[[Any], Array], given: Any) -> bool:
    """Whether what is given can change what the function returns."""
    jaxpr = jax.make_jaxpr(function)(given).jaxpr
    known = reached(jaxpr, [frozenset({0})] * len(jaxpr.invars), inside_calls=True)
    return any(tasks_of(var, known) for var in jaxpr.outvars)
