"""Leaves that take their step at random, and as far as they agree with their past."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consensus_optax import _check
from consensus_optax._rows.stack import check_reduced
from consensus_optax._rows.trees import (
    arrays_of,
    floating,
    floating_leaves,
    refilled,
)
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._typing import Array, Count, Number, Threshold, Tree
from consensus_optax.update_transforms._sound import inner_product, no_update_yet


class MagmaState(NamedTuple):
    """State of :func:`magma`.

    Attributes:
      step: () int32, updates made so far.
      momentum: moving average of the incoming updates, like the parameters, float32 at
        least.
      alignment: (leaves,) float32, moving average of how each agrees with it.
      kept: () float32, share of leaves that took the last step.
      inner: state of the wrapped optimizer.
    """

    step: Count
    momentum: Tree
    alignment: Array
    kept: Number
    inner: Any


def magma(
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    survival: Threshold = 0.5,
    temperature: Threshold = 2.0,
    momentum: Threshold = 0.9,
    decay: Threshold = 0.9,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum-aligned masking: leaves step at random, the more the better they agree.

    With g what comes in and u the optimizer's step, for every leaf

    .. math::
        m &\leftarrow \mu m + (1 - \mu) g, \qquad
        s \leftarrow \beta s + (1 - \beta)\,\sigma(\cos(m, g) / \tau) \\
        u &\leftarrow s z u, \qquad z \sim \mathrm{Bernoulli}(p)

    Guarantees: a leaf's step is that of the optimizer times one number in [0, 1]; the
    optimizer's state is what it would be without the gate; the draw of a step depends
    on ``key`` and the step alone, the same on all devices.
    Edge cases: s starts at its first value; a leaf that is all zero leaves m and s as
    they are, and so does one with a non-finite entry. A leaf whose first update is
    zero has agreed with nothing so far: s is 0 until one comes.

    Args:
      optimizer: what comes after the reducer, such as ``optax.adam(1e-3)``.
      key: random key of all draws.
      survival: p in [0, 1], the share of steps that a leaf takes: a number, array or
        schedule of the step, as all that follow.
      temperature: tau above 0.
      momentum: mu in [0, 1).
      decay: beta in [0, 1).

    Returns:
      A temporal transformation, placed after the reducer in ``optax.chain``. Go around
      it with ``optax.partition`` for leaves that should always step; the paper leaves
      embeddings out.

    Raises:
      ValueError: a static argument is out of range; when traced, rows come in, which
        no reducer has reduced.

    Cost: one array like the parameters kept, two inner products.

    Source: Joo et al. 2026, arXiv 2602.15322, whose blocks are leaves here and whose
    m is the base optimizer's own first moment; ours keeps one, since optax's states
    do not say where theirs is.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> tx = magma(optax.sgd(1.0), jax.random.key(0), survival=1.0)
      >>> params = jnp.zeros(2)
      >>> step, state = tx.update(jnp.array([1., 0.]), tx.init(params), params)
      >>> print(step, state.alignment)  # 1 / (1 + exp(-1 / 2))
      [-0.62245935 -0.        ] [0.62245935]
    """
    _check.optimizer("optimizer", optimizer)
    _check.key("key", key)
    _check.interval("survival", survival, 0, 1)
    _check.interval("temperature", temperature, 0, open_low=True)
    _check.interval("momentum", momentum, 0, 1, open_high=True)
    _check.interval("decay", decay, 0, 1, open_high=True)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Tree) -> MagmaState:
        num_leaves = len(floating_leaves(arrays_of(params)))
        return MagmaState(
            jnp.zeros((), jnp.int32),
            no_update_yet(params),
            jnp.zeros(num_leaves, jnp.float32),
            jnp.ones((), jnp.float32),
            inner.init(params),
        )

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, MagmaState]:
        if params is not None:
            check_reduced(updates, arrays_of(params))
        steps, new = inner.update(updates, state.inner, params, **extra)
        step = jnp.asarray(optax.safe_increment(state.step))
        incoming = floating_leaves(updates)
        if not incoming:
            return steps, state._replace(step=step, inner=new)
        value = lambda given: _check.value_at(given, state.step, jnp.float32)
        past = floating_leaves(state.momentum)
        moments, moving, cosines = _moments(incoming, past, value(momentum))
        now = jax.nn.sigmoid(cosines / value(temperature))
        beta = jnp.where(state.alignment > 0, value(decay), 0)
        mixed = beta * state.alignment + (1 - beta) * now
        alignment = jnp.where(moving, mixed, state.alignment)
        drawn = jax.random.fold_in(key, state.step)
        kept = jax.random.bernoulli(drawn, value(survival), alignment.shape)
        factors = iter(jnp.where(kept, alignment, 0))

        def gated(given: Any, leaf: Any) -> Any:
            return leaf * next(factors).astype(leaf.dtype) if floating(given) else leaf

        share = kept.mean(dtype=jnp.float32)
        masked = jax.tree.map(gated, updates, steps)
        moments = refilled(state.momentum, moments)
        return masked, MagmaState(step, moments, alignment, share, new)

    return optax.GradientTransformationExtraArgs(init, update)


def _moments(
    incoming: list[Array], momentum: list[Array], mu: Array
) -> tuple[list[Array], Array, Array]:
    """The momentum with what comes in, which leaves moved it, and their cosines."""
    moments: list[Array] = []
    moving: list[Array] = []
    cosines: list[Array] = []
    for leaf, old in zip(incoming, momentum, strict=True):
        wide, share = leaf.astype(old.dtype), mu.astype(old.dtype)
        length = inner_product(wide, wide)
        moves = jnp.isfinite(length) & (length > 0)
        moment = jnp.where(moves, share * old + (1 - share) * wide, old)
        scale = jnp.sqrt(length) * jnp.sqrt(inner_product(moment, moment))
        cosine = jnp.where(
            moves, inner_product(moment, wide) / positive_or_one(scale), 0
        )
        moments.append(moment)
        moving.append(moves)
        cosines.append(cosine.astype(jnp.float32))
    return moments, jnp.stack(moving), jnp.stack(cosines)
