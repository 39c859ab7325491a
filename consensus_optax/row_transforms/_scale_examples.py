"""All rows times a number."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from consensus_optax import _check
from consensus_optax._rows.stack import as_rows
from consensus_optax._typing import Count, Threshold, Tree
from consensus_optax.row_transforms._row_scaling import scaled, without_broken


class ScaleExamplesState(NamedTuple):
    """State of :func:`scale_examples`.

    Attributes:
      step: () int32, updates made so far.
    """

    step: Count


def scale_examples(factor: Threshold) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies every row by one number, as ``optax.scale`` does an update.

    .. math:: g_i \leftarrow c\, g_i

    To undo the scale of a loss, for one, before a rule whose thresholds are lengths.
    (``optax.scale`` ahead of a reducer would scale both factors of an outer product,
    which is an error.)

    Guarantees: outer products stay factored; dtypes stay.
    Edge cases: a row that is not finite stays so, whatever the factor, and the reducer
    excludes and counts it.

    Args:
      factor: c: a number, array or schedule of the step.

    Returns:
      A row transformation, (B, \*shape) to (B, \*shape), ahead of a reducer in
      ``optax.chain``.

    Raises:
      ValueError: ``factor`` is no number; when traced, as the reducer does.

    Cost: arrays are read and written once, of factored rows the smaller factor is.

    Examples:
      >>> import jax.numpy as jnp, optax, consensus_optax as co
      >>> rule = optax.chain(co.scale_examples(0.5), co.mean())
      >>> rows, params = jnp.array([[2., 4.], [4., 0.]]), jnp.zeros(2)
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [1.5, 1.0]
    """
    _check.interval("factor", factor)

    def init(params: Tree) -> ScaleExamplesState:
        del params
        return ScaleExamplesState(jnp.zeros((), jnp.int32))

    def update(
        updates: Tree, state: Any, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, ScaleExamplesState]:
        del extra
        rows, dtype = as_rows(updates, params)
        if rows:
            number = _check.value_at(factor, state.step, dtype)
            updates, _, sound = without_broken(updates, rows, dtype)
            updates = scaled(updates, jnp.broadcast_to(number, sound.shape), sound)
        return updates, ScaleExamplesState(
            jnp.asarray(optax.safe_increment(state.step))
        )

    return optax.GradientTransformationExtraArgs(init, update)
