"""The sum of clipped rows with Gaussian noise: what DP-SGD releases."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.kinds import Noised, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, PerRow, Threshold
from consensus_optax.weightings._clipping import ClippedState, Clipping
from consensus_optax.weightings._quantile_norm import QuantileNorm


@named
def private_sum(
    max_norm: Threshold | QuantileNorm,
    *,
    divisor: float,
    noise_multiplier: Threshold,
    key: Array,
    clipping: str = "threshold",
    stability: Threshold = 0.01,
    per_leaf: bool = False,
) -> Reducer:
    r"""DP-SGD's gradient: the sum of clipped rows and Gaussian noise, over a divisor.

    Also known as: DP-SGD, differentially private aggregate.

    .. math:: u = \frac1d \Big(\sum_i g_i \min(1, C / \|g_i\|)
        + N(0, z^2 C^2 I)\Big)

    What clips and sums is :func:`clipped_sum`, with its options and its sensitivity.
    One step is a Gaussian mechanism of noise multiplier z; steps on batches that are
    drawn at random cost less: :mod:`consensus_optax.privacy` draws such batches, tells
    (epsilon, delta) for z, and z for an epsilon.

    Guarantees: noise of deviation z C / d is added once to the sum of all rows, of all
    microbatches and of all devices, in float32 at least, before the update is rounded
    to its parameters' dtypes; also where no row is there. ``fold_in(fold_in(key, step),
    leaf)`` draws it, so no noise comes twice in 2^31 steps, and all devices draw the
    same. What one row can change is what :func:`clipped_sum` says.
    Edge cases: as there; ``consensus_ready`` is always True. z = 0: no noise, and no
    privacy. Under :func:`among` or :func:`after`, where rows decide about each other,
    it is an error.

    ``weights``: as for :func:`clipped_sum`.

    Not private are the loss that an engine returns, and what the state counts.

    Args:
      max_norm: C >= 0: a number, array or schedule of the step; or a
        :func:`quantile_norm`, which adapts it.
      divisor: d, usually the expected number of rows.
      noise_multiplier: z >= 0: a number, array or schedule.
      key: random key. Two private sums, of two runs or of two groups of parameters,
        must not have the same: their noise would be, too.
      clipping: ``"threshold"`` or ``"automatic"``.
      stability: of automatic clipping.
      per_leaf: whether every leaf is clipped by itself.

    Returns:
      A :class:`Reducer`. Its ``sensitivity`` is C / d, None where C adapts; then
      ``max_norm`` in its state is the C of the next step.

    Raises:
      ValueError: as :func:`clipped_sum`; ``noise_multiplier`` leaves none for the sum
        once the count of a :func:`quantile_norm` has its part.

    Cost: that of :func:`clipped_sum`, and one normal number for every parameter, on
    every device.

    References: Abadi et al., `Deep Learning with Differential Privacy
    <https://arxiv.org/abs/1607.00133>`_, 2016.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> key = jax.random.key(0)
      >>> rule = private_sum(1.0, divisor=2, noise_multiplier=0.5, key=key)
      >>> optimizer, params = optax.chain(rule, optax.sgd(0.1)), jnp.zeros(2)
      >>> rows = jnp.array([[0., 4.], [0.5, 0.]])
      >>> update, state = optimizer.update(rows, optimizer.init(params), params)
      >>> update.shape, rule.sensitivity
      ((2,), 0.5)
    """
    _check.interval("noise_multiplier", noise_multiplier, 0)
    _check.key("key", key)
    adaptive = max_norm if isinstance(max_norm, QuantileNorm) else None
    first = max_norm.initial if isinstance(max_norm, QuantileNorm) else max_norm
    how = Clipping(first, divisor, clipping, stability, per_leaf).checked()
    if adaptive is None:
        weighting = how.weighting()
    else:
        if per_leaf:
            raise ValueError(
                "`per_leaf` must be False with a `quantile_norm`, which is one norm of "
                "all leaves; got True"
            )
        _check.static_number("noise_multiplier", noise_multiplier, 0)
        noise_multiplier = adaptive.left_for_the_sum(noise_multiplier)
        weighting = _adapting(how, adaptive, key)

    def add(update: list[Array], roster: Roster, state: Any) -> list[Array]:
        dtype = roster.weights.dtype
        step_key = jax.random.fold_in(key, roster.step)
        norm = state.max_norm if adaptive else how.norm_at(roster.step, dtype)
        multiplier = _check.value_at(noise_multiplier, roster.step, dtype)
        stddev = multiplier * norm / divisor
        noisy = []
        for index, leaf in enumerate(update):
            leaf_key = jax.random.fold_in(step_key, index)
            normal = functools.partial(jax.random.normal, leaf_key, dtype=dtype)
            noisy.append(leaf + stddev * roster.coordinates.draw(index, leaf, normal))
        return noisy

    made = reducer(Noised(weighting, add))
    made.sensitivity = None if adaptive else how.sensitivity
    return made


# Leaves are counted from 0: there are not as many.
_OF_COUNT = 2**31 - 1


def _adapting(how: Clipping, adaptive: QuantileNorm, key: Array) -> Weighting:
    """The weighting whose norm is in its state."""

    def weigh(
        squares: PerRow, roster: Roster, state: ClippedState
    ) -> tuple[PerRow, ClippedState]:
        weights, shorter = how.weights(squares, roster, state.max_norm)
        step_key = jax.random.fold_in(key, roster.step)
        within = roster.weights * jnp.sqrt(squares) <= state.max_norm
        count_key = jax.random.fold_in(step_key, _OF_COUNT)
        after = adaptive.next(state.max_norm, within, roster, count_key)
        return weights, ClippedState(after, shorter.sum(dtype=jnp.int32))

    return how.weighting()._replace(weigh=weigh)
