"""Local training: what one client, or many, make of parameters and batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from consensus_optax._rows import verbs
from consensus_optax._rows.varying import varying_like


class Trained(NamedTuple):
    """What local training gives.

    Attributes:
      loss: () before the first step.
      moved: what each parameter has moved, in float32 at least.
      gradient: the mean gradient over the steps, likewise; None if not asked for.
    """

    loss: jax.Array
    moved: Any
    gradient: Any


def local_training(
    loss: Callable[[Any, Any], jax.Array],
    optimizer: optax.GradientTransformation,
    keeps_gradient: bool = False,
) -> Callable[[Any, Any, Any], Trained]:
    """The training of one client: (params, batches, correction) to what it gives.

    ``batches`` lead with the steps; ``correction`` is added to every gradient, None: 0.
    Moves are summed up by themselves, so steps that are tiny against the parameters are
    not rounded away.
    """

    def client(params: Any, batches: Any, correction: Any) -> Trained:
        def step(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
            moved, state, total = carry
            here = jax.tree.map(displaced, params, moved)
            value, grads = jax.value_and_grad(loss)(here, batch)
            if keeps_gradient:
                total = jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, grads)
            if correction is not None:
                grads = jax.tree.map(
                    lambda g, c: g + c.astype(g.dtype), grads, correction
                )
            updates, state = optimizer.update(grads, state, here)
            moved = jax.tree.map(lambda m, u: m + u.astype(m.dtype), moved, updates)
            return (moved, state, total), value

        dtype = verbs.decision_dtype(params)
        still = jax.tree.map(lambda p: jnp.zeros_like(p, dtype), params)
        # Inside ``shard_map`` the gradient by parameters that are the same everywhere
        # is the sum over the devices; by these it is each device's own.
        start = still, optimizer.init(params), still if keeps_gradient else None
        begin = varying_like(start, batches)
        (moved, _, total), values = lax.scan(step, begin, batches)
        mean = jax.tree.map(lambda t: t / values.shape[0], total)
        return Trained(values[0], moved, mean)

    return client


def displaced(param: jax.Array, moved: jax.Array) -> jax.Array:
    """Where a client is, in the parameter's own dtype."""
    return (param.astype(moved.dtype) + moved).astype(param.dtype)


def over_clients(
    function: Callable[..., Any], chunk_size: int | None
) -> Callable[..., Any]:
    """A function of one client, of many, ``chunk_size`` at a time or all at once."""
    if chunk_size is None:
        return jax.vmap(function)
    return lambda *args: lax.map(
        lambda one: function(*one), args, batch_size=chunk_size
    )
