"""Agreement in sign over time instead of over rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consensus_optax import _check
from consensus_optax._rows.stack import check_reduced
from consensus_optax._rows.trees import floating
from consensus_optax._rules.arithmetic import SLACK
from consensus_optax._typing import Array, Count, Number, Threshold, Tree
from consensus_optax.update_transforms._sound import is_sound, no_update_yet, or_zero


class TemporalAndMaskState(NamedTuple):
    """State of :func:`temporal_and_mask`.

    Attributes:
      step: () int32, updates made so far.
      mass: () float32, total weight of the steps in the averages, 1 in the long run.
      signs: moving average of signs, like the parameters, float32 at least.
      consensus_ratio: () float32, share of coordinates that the last step let pass.
    """

    step: Count
    mass: Number
    signs: Tree
    consensus_ratio: Number


def temporal_and_mask(
    decay: Threshold = 0.9, min_agreement: Threshold = 0.5
) -> optax.GradientTransformationExtraArgs:
    r"""Temporal AND-mask: a coordinate passes while its sign persists over the steps.

    Also known as: temporal AND-mask.

    .. math:: s \leftarrow \beta s + (1 - \beta)\,\mathrm{sign}(u), \qquad
        u \leftarrow u \, \Big[\frac{|s|}{1 - \beta^t} \ge \tau\Big]

    The AND-mask (``sign_consensus(magnitude="mean")``) with an average over past
    updates in place of the rows: it needs no second row. The correction for the short
    past is exact for any schedule of the decay.

    Guarantees: every entry passes unchanged or is exactly zero; the decision does not
    depend on the size of any update; the first update passes.
    Edge cases: an incoming entry of zero is a vote for neither sign. An incoming
    update that is all zero (empty consensus) or has a non-finite entry goes out as
    zero and leaves the averages as they are. An entry that turns for once passes while
    the average of signs is above the threshold.

    Args:
      decay: beta in [0, 1): a number, array or schedule of the step.
      min_agreement: tau in [0, 1], likewise.

    Returns:
      A temporal transformation, placed after the reducer in ``optax.chain``.

    Raises:
      ValueError: a static argument is out of range; when traced, rows come in, which
        no reducer has reduced.

    Cost: one array like the parameters kept.

    References: Parascandolo et al., `Learning explanations that are hard to vary
    <https://arxiv.org/abs/2009.00329>`_, 2020, who use it in reinforcement learning;
    the defaults are ours.

    Examples:
      >>> import jax.numpy as jnp
      >>> mask, params = temporal_and_mask(), jnp.zeros(2)
      >>> state = mask.init(params)
      >>> for update in ([1., 1.], [2., -2.]):
      ...     update, state = mask.update(jnp.array(update), state, params)
      ...     print(update)
      [1. 1.]
      [2. 0.]
    """
    _check.interval("decay", decay, 0, 1, open_high=True)
    _check.interval("min_agreement", min_agreement, 0, 1)

    def init(params: Tree) -> TemporalAndMaskState:
        return TemporalAndMaskState(
            step=jnp.zeros((), jnp.int32),
            mass=jnp.zeros((), jnp.float32),
            signs=no_update_yet(params),
            consensus_ratio=jnp.zeros((), jnp.float32),
        )

    def update(
        updates: Tree,
        state: Any,
        params: Tree | None = None,
        **extra: Any,
    ) -> tuple[Tree, TemporalAndMaskState]:
        del params, extra
        check_reduced(updates, state.signs)
        leaves, treedef = jax.tree.flatten(updates)
        averages = treedef.flatten_up_to(state.signs)
        sound = is_sound(leaves)
        beta = _check.value_at(decay, state.step, jnp.float32)
        tau = _check.value_at(min_agreement, state.step, jnp.float32)
        mass = beta * state.mass + (1 - beta)

        def mask(leaf: Any, average: Array) -> tuple[Any, Array]:
            """The outgoing leaf and its new average of signs."""
            if not floating(leaf):
                return leaf, average
            wide = lambda number: number.astype(average.dtype)
            votes = jnp.sign(wide(leaf))
            signs = wide(beta) * average + wide(1 - beta) * votes
            passes = jnp.abs(signs) >= wide((tau - SLACK) * mass)
            kept = or_zero(sound, leaf, jnp.where(passes, wide(leaf), 0))
            return kept, jnp.where(sound, signs, average)

        pairs = [mask(*pair) for pair in zip(leaves, averages, strict=True)]
        kept, signs = ([pair[i] for pair in pairs] for i in range(2))
        moving = [leaf for leaf in kept if floating(leaf)]
        passed = sum(jnp.sum(leaf != 0, dtype=jnp.float32) for leaf in moving)
        size = float(max(sum(leaf.size for leaf in moving), 1))
        return jax.tree.unflatten(treedef, kept), TemporalAndMaskState(
            jnp.asarray(optax.safe_increment(state.step)),
            jnp.where(sound, mass, state.mass),
            jax.tree.unflatten(treedef, signs),
            jnp.float32(passed) / size,
        )

    return optax.GradientTransformationExtraArgs(init, update)
