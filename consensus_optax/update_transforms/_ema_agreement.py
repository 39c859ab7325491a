"""A gate on the update by its agreement with its own past."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consensus_optax import _check
from consensus_optax._rows.stack import check_reduced
from consensus_optax._rows.trees import floating
from consensus_optax._rules.arithmetic import SLACK, positive_or_one
from consensus_optax._typing import Count, Number, Threshold, Tree
from consensus_optax.update_transforms._sound import inner_product, no_update_yet


class EmaAgreementState(NamedTuple):
    """State of :func:`ema_agreement`.

    Attributes:
      step: () int32, updates made so far.
      ema: moving average of the incoming updates, like the parameters, float32 at
        least.
      suppressed: () float32, share of leaves that the last step set to zero.
    """

    step: Count
    ema: Tree
    suppressed: Number


def ema_agreement(
    decay: Threshold = 0.9, max_distance: Threshold = 0.99, scope: str = "leaf"
) -> optax.GradientTransformationExtraArgs:
    r"""Zeroes the update where it turns away from its own moving average.

    .. math::
        u \leftarrow u\,[1 - \cos(u, m) \le \tau], \quad
        m \leftarrow \beta m + (1 - \beta) u_{\text{incoming}}

    Guarantees: every leaf passes unchanged or is exactly zero; the first update passes.
    Edge cases: an incoming leaf that is all zero (empty consensus) passes and leaves
    its average as it is; one with a non-finite entry is set to zero, counts as
    suppressed and leaves its average as it is. Leaves that carry no gradient pass.

    Args:
      decay: beta in [0, 1): a number, array or schedule of the step.
      max_distance: largest cosine distance that passes, in [0, 2]; likewise.
      scope: ``"leaf"``: each parameter by itself; ``"model"``: all or nothing.

    Returns:
      A temporal transformation, placed after the reducer in ``optax.chain``.

    Raises:
      ValueError: a static argument is out of range; when traced, rows come in, which
        no reducer has reduced.

    Cost: one array like the parameters kept; two inner products.

    Examples:
      >>> import jax.numpy as jnp
      >>> gate, params = ema_agreement(), jnp.zeros(2)
      >>> state = gate.init(params)
      >>> _, state = gate.update(jnp.array([1., 0.]), state, params)
      >>> gate.update(jnp.array([-1., 0.]), state, params)[0].tolist()
      [0.0, 0.0]
    """
    _check.interval("decay", decay, 0, 1, open_high=True)
    _check.interval("max_distance", max_distance, 0, 2)
    _check.one_of("scope", scope, ("leaf", "model"))

    def init(params: Tree) -> EmaAgreementState:
        step, suppressed = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
        return EmaAgreementState(step, no_update_yet(params), suppressed)

    def update(
        updates: Tree,
        state: Any,
        params: Tree | None = None,
        **extra: Any,
    ) -> tuple[Tree, EmaAgreementState]:
        del params, extra
        check_reduced(updates, state.ema)
        every, treedef = jax.tree.flatten(updates)
        places = [i for i, leaf in enumerate(every) if floating(leaf)]
        memories = treedef.flatten_up_to(state.ema)
        incoming = [every[i] for i in places]
        averages = [memories[i] for i in places]
        step = jnp.asarray(optax.safe_increment(state.step))
        if not incoming:
            return updates, state._replace(step=step)
        wide = [u.astype(m.dtype) for u, m in zip(incoming, averages, strict=True)]
        products = jnp.stack(
            [
                jnp.stack(
                    [inner_product(u, m), inner_product(u, u), inner_product(m, m)]
                )
                for u, m in zip(wide, averages, strict=True)
            ]
        )  # (leaves, 3)
        if scope == "model":
            products = jnp.broadcast_to(products.sum(0, keepdims=True), products.shape)
        inner, length, past = products.T
        scale = jnp.sqrt(length) * jnp.sqrt(past)
        cosine = inner / positive_or_one(scale)
        limit = _check.value_at(max_distance, state.step, cosine.dtype)
        beta = _check.value_at(decay, state.step, cosine.dtype)
        finite = jnp.isfinite(length)
        moving = finite & (length > 0)
        passes = finite & ((scale == 0) | (1 - cosine <= limit + SLACK))
        gated = [
            jnp.where(passes[i], u, jnp.zeros_like(u)) for i, u in enumerate(incoming)
        ]
        averages = [
            jnp.where(
                moving[i], beta.astype(m.dtype) * m + (1 - beta).astype(m.dtype) * u, m
            )
            for i, (u, m) in enumerate(zip(wide, averages, strict=True))
        ]
        for i, new, average in zip(places, gated, averages, strict=True):
            every[i], memories[i] = new, average
        return jax.tree.unflatten(treedef, every), EmaAgreementState(
            step,
            jax.tree.unflatten(treedef, memories),
            jnp.mean(~passes, dtype=jnp.float32),
        )

    return optax.GradientTransformationExtraArgs(init, update)
