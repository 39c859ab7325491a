"""Losses that all fall at the same rate."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from consensus_optax import _check
from consensus_optax._typing import Array
from consensus_optax.scalarizers._scalarizer import Scalarizer, as_losses, of_each

_EPS = 1e-8  # in the authors' code


class FamoState(NamedTuple):
    """The weights of the losses, and what learns them.

    Attributes:
      logits: (K,) the weights are their softmax.
      opt_state: of Adam.
      skipped: () int32, updates left out since a loss was not finite.
    """

    logits: Array
    opt_state: Any
    skipped: Array


def famo(
    learning_rate: float = 0.025, weight_decay: float = 1e-3, ideal: Any = None
) -> Scalarizer:
    r"""FAMO: fast adaptive multitask optimization, all losses fall at one rate.

    .. math:: f = c \sum_k z_k \log(\ell_k - b_k), \qquad z = \mathrm{softmax}(\xi),
        \qquad c = \Big(\sum_k \frac{z_k}{\ell_k - b_k}\Big)^{-1}

    and after the step :math:`\xi` takes one of Adam against :math:`\sum_k z_k
    \big(\log(\ell_k - b_k) - \log(\ell_k' - b_k)\big)`, with weight decay, where
    :math:`\ell'` are the losses of the same batch after the step. A loss that fell less
    than others gets more weight: what :func:`mgda` does by gradients of log-losses,
    by one more forward pass instead.

    Guarantees: the gradient is a convex combination of the losses' gradients (c and z
    are constant to it); the weights do not depend on
    the scale of a loss, if its b is scaled too, but for the 1e-8 below.
    Edge cases: b is less than the loss; where it is not, the difference counts as 1e-8
    (which is added everywhere, as in the authors' code) and has no gradient. A loss
    that is not finite, before or after: the weights stay, and ``skipped`` counts.

    Args:
      learning_rate: of Adam, >= 0.
      weight_decay: of :math:`\xi`, in the gradient, >= 0. 1e-3 in the paper, 1e-5 in
        the authors' code.
      ideal: b, (K,) numbers below the losses; 0 if None.

    Returns:
      A :class:`Scalarizer`; ``update(losses, state, new_losses)`` once a step.

    Raises:
      ValueError: an argument is out of range; when traced, losses are not (K,), or
        ``update`` has no ``new_losses``.

    References: Liu et al., `FAMO: Fast Adaptive Multitask Optimization
    <https://arxiv.org/abs/2306.03792>`_, 2023 (Algorithm 1).

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> scalarizer = famo()
      >>> losses, state = jnp.array([1.0, 4.0]), scalarizer.init(2)
      >>> print(jax.grad(scalarizer.scalar)(losses, state))
      [0.8 0.2]
      >>> state = scalarizer.update(losses, state, jnp.array([0.5, 4.0]))
      >>> print(state.logits.round(3))  # the second has not fallen
      [-0.025  0.025]
    """
    _check.interval("learning_rate", learning_rate, 0)
    _check.interval("weight_decay", weight_decay, 0)
    adam = optax.chain(
        optax.add_decayed_weights(weight_decay), optax.adam(learning_rate)
    )

    def init(num_losses: int) -> FamoState:
        _check.count("num_losses", num_losses)
        logits = jnp.zeros(num_losses, jnp.float32)
        return FamoState(logits, adam.init(logits), jnp.zeros((), jnp.int32))

    def above(losses: Array) -> Array:
        """How far losses are above the ideal ones."""
        if ideal is not None:
            losses = losses - of_each("ideal", ideal, losses)
        return (
            jnp.where(losses <= 0, 0, losses) + _EPS
        )  # no half of a gradient at a tie

    def scalar(losses: Array, state: FamoState) -> Array:
        losses = as_losses(losses)
        shares = jax.nn.softmax(of_each("state", state.logits, losses))
        left = above(losses)
        inverse = jnp.sum(shares / left)
        shares = jax.lax.stop_gradient(shares / inverse)
        return jnp.sum(shares * jnp.log(left))

    def update(losses: Array, state: FamoState, new_losses: Any = None) -> FamoState:
        if new_losses is None:
            raise ValueError(
                "`new_losses` must be the losses of the same batch after the step; got "
                "None"
            )
        losses = as_losses(losses).astype(jnp.float32)
        after = of_each("new_losses", as_losses(new_losses, "new_losses"), losses)
        logits = of_each("state", state.logits, losses)
        fall = jnp.log(above(losses)) - jnp.log(above(after))
        shares = jax.nn.softmax(logits)
        slope = shares * (fall - jnp.sum(shares * fall))
        move, opt_state = adam.update(slope, state.opt_state, logits)
        sound = jnp.all(jnp.isfinite(slope))
        keep = lambda new, old: jnp.where(sound, new, old)
        skipped = state.skipped + (~sound).astype(jnp.int32)
        moved = FamoState(logits + cast(Array, move), opt_state, skipped)
        return jax.tree.map(keep, moved, state._replace(skipped=skipped))

    return Scalarizer(init, scalar, update)
