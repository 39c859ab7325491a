"""Losses that fall slowly weigh more."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._typing import Array
from consensus_optax.scalarizers._scalarizer import Scalarizer, as_losses, of_each


class DwaState(NamedTuple):
    """Means of the losses over epochs.

    Attributes:
      step: () int32, updates made.
      older: (K,) mean losses of the epoch before the last one; 0 if there was none.
      newer: (K,) mean losses of the last epoch; 0 if there was none.
      total: (K,) sum over this epoch so far.
      counts: (K,) how many finite losses are in it.
    """

    step: Array
    older: Array
    newer: Array
    total: Array
    counts: Array


def dwa(steps_per_epoch: int, temperature: float = 2.0) -> Scalarizer:
    r"""Dynamic weight average (DWA): weights by how slowly each loss fell.

    .. math:: f = \sum_k \lambda_k \ell_k, \qquad
        \lambda = K\, \mathrm{softmax}(r / T), \qquad r_k = L_k^{(e-1)} / L_k^{(e-2)}

    with :math:`L^{(e)}` the mean losses of epoch e. In the first two epochs the weights
    are 1.

    Guarantees: the weights are positive and sum to K; scaling a loss scales its part
    and no weight.
    Edge cases: a loss that is not finite is left out of its mean. A loss whose mean was
    0 or of another sign has no rate: 1.

    Args:
      steps_per_epoch: how many updates are averaged.
      temperature: T > 0; larger is more even.

    Returns:
      A :class:`Scalarizer`; ``update(losses, state)`` once a step.

    Raises:
      ValueError: an argument is out of range; when traced, losses are not (K,).

    References: Liu, Johns and Davison, `End-to-End Multi-Task Learning with Attention
    <https://arxiv.org/abs/1803.10704>`_, 2018.

    Examples:
      >>> import jax.numpy as jnp
      >>> scalarizer = dwa(steps_per_epoch=1)
      >>> state = scalarizer.init(2)
      >>> for losses in ([4.0, 1.0], [1.0, 1.0]):  # the first falls, the second stays
      ...     state = scalarizer.update(jnp.array(losses), state)
      >>> print(scalarizer.scalar(jnp.array([1.0, 1.0]), state))
      2.0
    """
    _check.count("steps_per_epoch", steps_per_epoch)
    _check.interval("temperature", temperature, 0, open_low=True, schedule=False)

    def init(num_losses: int) -> DwaState:
        _check.count("num_losses", num_losses)
        zeros = jnp.zeros(num_losses, jnp.float32)
        return DwaState(jnp.zeros((), jnp.int32), zeros, zeros, zeros, zeros)

    def scalar(losses: Array, state: DwaState) -> Array:
        losses = as_losses(losses)
        older = of_each("state", state.older, losses)
        newer = of_each("state", state.newer, losses)
        # So neither in the first two epochs: 0 stands for a mean that is not there.
        known = jnp.sign(older) * jnp.sign(newer) > 0
        rates = jnp.where(known, newer / jnp.where(known, older, 1), 1)
        heat = jnp.asarray(temperature).astype(losses.dtype)
        weights = losses.size * jax.nn.softmax(rates / heat)
        return jnp.sum(jax.lax.stop_gradient(weights) * losses)

    def update(losses: Array, state: DwaState, new_losses: Any = None) -> DwaState:
        del new_losses
        losses = as_losses(losses).astype(jnp.float32)
        of_each("state", state.total, losses)
        finite = jnp.isfinite(losses)
        total = state.total + jnp.where(finite, losses, 0)
        counts = state.counts + finite.astype(jnp.float32)
        step = state.step + 1
        ends = step % steps_per_epoch == 0
        mean = total / jnp.maximum(counts, 1)
        return DwaState(
            step,
            jnp.where(ends, state.newer, state.older),
            jnp.where(ends, mean, state.newer),
            jnp.where(ends, 0, total),
            jnp.where(ends, 0, counts),
        )

    return Scalarizer(init, scalar, update)
