"""No step against the consensus of now, whatever momentum says."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consensus_optax import _check
from consensus_optax._rows.stack import check_reduced
from consensus_optax._rows.trees import arrays_of, floating
from consensus_optax._typing import Array, Number, Tree


class CautiousState(NamedTuple):
    """State of :func:`cautious`.

    Attributes:
      kept: () float32, share of coordinates that the last step moved.
      inner: state of the wrapped optimizer.
    """

    kept: Number
    inner: Any


def cautious(
    optimizer: optax.GradientTransformation, rescale: bool = True
) -> optax.GradientTransformationExtraArgs:
    r"""An optimizer whose step has no coordinate that goes against the incoming update.

    With g what comes in, consensus or gradient, and u the optimizer's step (which optax
    adds to the parameters, so that a step down has the sign of -g), in every leaf

    .. math::
        u \leftarrow \frac{m}{\max(\bar m, 10^{-3})}\, u, \qquad
        m = [\,u g < 0\,], \qquad \bar m = \sum m \Big/ \sum [\,g \neq 0\,]

    Guarantees: no coordinate of the step has the sign of g; without ``rescale`` all
    others are those of the optimizer. Its state is what it would be without the gate.
    Edge cases: a coordinate where g is 0 does not move, so decay of weights reaches
    only those that do (add it after this where it should reach all); a leaf that is all
    zero stays so.

    Args:
      optimizer: with momentum or moments, such as ``optax.adam(1e-3)``.
      rescale: whether each leaf is divided by the share of coordinates that are kept,
        of those where g is not 0, at most by 1e-3, so that its length stays in the
        mean.

    Returns:
      A temporal transformation, placed after the reducer in ``optax.chain``.

    Raises:
      ValueError: an argument is none; when traced, rows come in, which no reducer has
        reduced.

    Cost: one pass over the update; no state of the parameters' size.

    Source: Liang et al. 2024, arXiv 2411.16085. The mean of m is that of a leaf there
    too, over all coordinates: their g has no zeros. A consensus has, and is no longer
    for having few others. The bound 1e-3 is that of the authors' code.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> tx, params = cautious(optax.sgd(1.0, momentum=0.9), False), jnp.zeros(2)
      >>> _, state = tx.update(jnp.array([1., 1.]), tx.init(params), params)
      >>> step, state = tx.update(jnp.array([1., -0.5]), state, params)
      >>> print(step, state.kept)
      [-1.9  0. ] 0.5
    """
    _check.optimizer("optimizer", optimizer)
    _check.flag("rescale", rescale)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Tree) -> CautiousState:
        return CautiousState(jnp.ones((), jnp.float32), inner.init(params))

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, CautiousState]:
        if params is not None:
            check_reduced(updates, arrays_of(params))
        steps, new = inner.update(updates, state.inner, params, **extra)
        flat, treedef = jax.tree.flatten(steps)
        given = treedef.flatten_up_to(updates)
        kept: list[Array] = []
        gated: list[Any] = []
        for step, incoming in zip(flat, given, strict=True):
            if not floating(step):
                gated.append(step)
                continue
            mask = jnp.sign(step) * jnp.sign(incoming).astype(step.dtype) < 0
            asked = jnp.sum(incoming != 0, dtype=jnp.float32)
            share = mask.sum(dtype=jnp.float32) / jnp.maximum(asked, 1)
            scale = 1 / jnp.maximum(share, 1e-3) if rescale else jnp.float32(1)
            gated.append(jnp.where(mask, step * scale.astype(step.dtype), 0))
            kept.append(mask.sum(dtype=jnp.float32))
        size = float(max(sum(leaf.size for leaf in flat if floating(leaf)), 1))
        total = jnp.stack(kept).sum() if kept else jnp.zeros((), jnp.float32)
        return treedef.unflatten(gated), CautiousState(total / size, new)

    return optax.GradientTransformationExtraArgs(init, update)
