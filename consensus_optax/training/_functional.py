"""From Flax objects to functions of parameters, and from rows to Flax's own steps."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx

Params = Any


def functional(model: nnx.Module) -> tuple[Callable[..., Any], Params]:
    """Splits an NNX model into a function of its parameters, and the parameters.

    `consensus_optax.per_example_grad` and ``jax.vmap`` want a pure function. What the
    model holds beside its parameters (dropout keys, say) stays as it is now.

    Args:
      model: any NNX module.

    Returns:
      ``apply(params, *args, **kwargs)``, which calls the model, and ``params``.

    Examples:
      >>> import jax.numpy as jnp
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> apply, params = functional(model)
      >>> x = jnp.ones((3, 2))
      >>> bool((apply(params, x) == model(x)).all())
      True
    """
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def apply(params: Params, *args: Any, **kwargs: Any) -> Any:
        # New variables for every call: merge would share, and a call count, them.
        params, fresh = jax.tree.map(lambda leaf: leaf, (params, rest))
        return nnx.merge(graphdef, params, fresh)(*args, **kwargs)

    return apply, params


def init_many(make: Callable[[nnx.Rngs], nnx.Module], keys: jax.Array) -> Params:
    """Makes the parameters of many models of one kind at once.

    Args:
      make: builds the model from its random streams.
      keys: random keys of any shape.

    Returns:
      Parameters with the shape of ``keys`` as leading axes, for ``jax.vmap``.

    Examples:
      >>> make = lambda rngs: nnx.Linear(2, 1, rngs=rngs)
      >>> params = init_many(make, jax.random.split(jax.random.key(0), 5))
      >>> params["kernel"].shape
      (5, 2, 1)
    """
    init = lambda key: nnx.state(make(nnx.Rngs(key)), nnx.Param)
    # A loop, because vmap would take four times as long to compile.
    params = jax.lax.map(init, keys.reshape(-1))
    return jax.tree.map(lambda p: p.reshape(*keys.shape, *p.shape[1:]), params)


def apply_rows(state: Any, rows: Any, **extra: Any) -> Any:
    """One step of a linen ``TrainState`` whose optimizer starts with a reducer.

    ``state.apply_gradients(grads=rows)`` does the same, but has no way to hand
    ``weights`` (or any other extra argument) to the optimizer; this does. For NNX,
    ``nnx.Optimizer.update(model, rows, weights=weights)`` needs no help.

    Args:
      state: a ``flax.training.train_state.TrainState``.
      rows: per-example gradients.
      **extra: what the optimizer shall see beside them, e.g. ``weights``.

    Returns:
      The next state.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import consensus_optax as co
      >>> from flax.training.train_state import TrainState
      >>> tx = optax.chain(co.mean(), optax.sgd(1.0))
      >>> state = TrainState.create(apply_fn=None, params=jnp.zeros(()), tx=tx)
      >>> rows, weights = jnp.array([1.0, 5.0]), jnp.array([1.0, 0.0])
      >>> float(apply_rows(state, rows, weights=weights).params)
      -1.0
    """
    updates, opt_state = state.tx.update(rows, state.opt_state, state.params, **extra)
    return state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
    )
