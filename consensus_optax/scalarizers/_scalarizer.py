"""What a scalarizer with a state is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from consensus_optax._typing import Array


class Scalarizer(NamedTuple):
    """Several losses to one, with a state that follows them: three pure functions.

    Attributes:
      init: K, the number of losses, to the state.
      scalar: (losses, state) to one number, (); losses are (K,). Differentiable by the
        losses, while what the state gives is constant.
      update: (losses, state, new_losses) to the next state. ``new_losses``, those of
        the same batch after the step, are read by those that say so, else optional.

    Examples:
      >>> import jax, jax.numpy as jnp, consensus_optax as co
      >>> scalarizer = co.scalarizers.dwa(steps_per_epoch=1)
      >>> losses = lambda x: jnp.stack([x**2, (x - 1) ** 2])
      >>> x, state = jnp.array(3.0), scalarizer.init(2)
      >>> for _ in range(3):
      ...     x = x - 0.1 * jax.grad(lambda x: scalarizer.scalar(losses(x), state))(x)
      ...     state = scalarizer.update(losses(x), state)
      >>> round(float(x), 3)
      1.024
    """

    init: Callable[[int], Any]
    scalar: Callable[[Array, Any], Array]
    update: Callable[..., Any]


def as_losses(losses: Array, name: str = "losses") -> Array:
    """Losses (K,), in float32 at least.

    Raises:
      ValueError: they are of another shape, or no floating point numbers.
    """
    losses = jnp.asarray(losses)
    if losses.ndim != 1 or losses.size == 0:
        raise ValueError(
            f"`{name}` must be (K,), one number a loss; got shape {losses.shape}"
        )
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(f"`{name}` must be floating; got {losses.dtype}")
    return losses if losses.dtype == jnp.float64 else losses.astype(jnp.float32)


def of_each(name: str, values: Any, losses: Array) -> Array:
    """Numbers, one for each loss, in the dtype of the losses.

    Raises:
      ValueError: there is not one for each loss.
    """
    values = jnp.asarray(values).astype(losses.dtype)
    if values.shape != losses.shape:
        raise ValueError(
            f"`{name}` must have one number a loss, {losses.shape}; got {values.shape}"
        )
    return values
