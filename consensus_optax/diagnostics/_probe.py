"""A look at the rows on their way to the reducer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from consensus_optax import _check
from consensus_optax._rows import verbs
from consensus_optax._rows.outer_product import is_outer_product
from consensus_optax._typing import Array, Threshold, Tree
from consensus_optax.diagnostics._coherence import coherence
from consensus_optax.diagnostics._cosines import conflicting_share, cosine_quantiles
from consensus_optax.diagnostics._gramian import present
from consensus_optax.diagnostics._noise_scale import noise_scale, ratio


class ProbeState(NamedTuple):
    """State of :func:`probe`: moving averages over the steps that had two rows or more.

    Attributes:
      step: () int32, updates made so far.
      mass: () float32, total weight of the steps in the averages, 1 in the long run.
      coherence: () float32, see :func:`coherence`.
      leaf_coherence: a tree like the parameters, the same of each leaf.
      conflicting_share: () float32, see :func:`conflicting_share`.
      cosine_quantiles: (5,) float32: least, quartiles and largest cosine of pairs.
      gradient_squared: () float32, see :class:`NoiseScale`.
      noise_trace: () float32, likewise.
      noise_scale: () float32, quotient of the two averages before.
    """

    step: Array
    mass: Array
    coherence: Array
    leaf_coherence: Tree
    conflicting_share: Array
    cosine_quantiles: Array
    gradient_squared: Array
    noise_trace: Array
    noise_scale: Array


def probe(
    decay: Threshold = 0.9, group_size: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Passes rows through and keeps numbers of how they agree in its state.

    Guarantees: the rows are not touched. All fields are corrected for the short past,
    so the first step shows what it saw; numerator and denominator of the noise scale
    are averaged by themselves.
    Edge cases: a row with a non-finite entry is absent. A step with fewer than two rows
    leaves all averages as they are.

    ``weights``: 0 = absent; see the functions that the fields are named after.

    Args:
      decay: of the moving averages, in [0, 1); 0 keeps the last step alone. A number,
        array or schedule of the step.
      group_size: examples in one row, for the noise scale.

    Returns:
      An example transformation, ahead of a reducer in ``optax.chain``. Read a field by
      ``optax.tree.get(state, "noise_scale")``.

    Raises:
      ValueError: a static argument is out of range.

    Cost: one Gramian, which a compiler may share with that of a weighting.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> tx, params = optax.chain(co.probe(), co.mean()), jnp.zeros(2)
      >>> rows = jnp.array([[1., 0.], [0., 1.]])
      >>> _, state = tx.update(rows, tx.init(params), params)
      >>> optax.tree.get(state, "conflicting_share").item()
      0.0
      >>> state[0].coherence.item()
      1.0
    """
    _check.interval("decay", decay, 0, 1, open_high=True)
    _check.count("group_size", group_size)

    def init(params: Tree) -> ProbeState:
        zero = lambda *shape: jnp.zeros(shape, jnp.float32)
        return ProbeState(
            step=jnp.zeros((), jnp.int32),
            mass=zero(),
            coherence=zero(),
            leaf_coherence=jax.tree.map(lambda _: zero(), params),
            conflicting_share=zero(),
            cosine_quantiles=zero(5),
            gradient_squared=zero(),
            noise_trace=zero(),
            noise_scale=zero(),
        )

    def update(
        updates: Tree,
        state: Any,
        params: Tree | None = None,
        *,
        weights: Array | None = None,
        **extra: Any,
    ) -> tuple[Tree, ProbeState]:
        del params, extra
        step = jnp.asarray(optax.safe_increment(state.step))
        flat, treedef = jax.tree.flatten(updates, is_leaf=is_outer_product)
        floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in flat]
        if not any(floating):
            return updates, state._replace(step=step)
        dtype = verbs.decision_dtype(flat)
        gramians = [
            verbs.gramian(leaf, dtype) if moves else None
            for leaf, moves in zip(flat, floating, strict=True)
        ]
        parts = [part for part in gramians if part is not None]
        whole = sum(parts[1:], parts[0])
        whole, there = present(whole, weights)  # rows that are absent in any leaf
        estimate = noise_scale(whole, there, group_size)
        seen = (
            coherence(whole, there),
            jax.tree.unflatten(
                treedef,
                [
                    jnp.zeros(()) if part is None else coherence(part, there)
                    for part in gramians
                ],
            ),
            conflicting_share(whole, there),
            cosine_quantiles(whole, weights=there),
            estimate.gradient_squared,
            estimate.noise_trace,
        )
        beta = _check.value_at(decay, state.step, jnp.float32)
        mass = beta * state.mass + (1 - beta)
        several = jnp.sum(there > 0) > 1

        def average(old: Array, new: Array) -> Array:
            """Corrected for the short past: the divisor is the mass so far."""
            moved = old + (1 - beta) / mass * (new.astype(jnp.float32) - old)
            return jnp.where(several, moved, old)

        averages = jax.tree.map(average, tuple(state[2:-1]), seen)
        return updates, ProbeState(
            step,
            jnp.where(several, mass, state.mass),
            *averages,
            noise_scale=jnp.where(
                several, ratio(averages[-1], averages[-2]), state.noise_scale
            ),
        )

    return optax.GradientTransformationExtraArgs(init, update)
