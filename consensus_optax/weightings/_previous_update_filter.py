"""Rows that turn away from the last update are left out."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import positive_or_one, root
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import (
    Bordered,
    PerWeight,
    Threshold,
    Tree,
)
from consensus_optax.weightings._cosine_filter import CosineFilterState, gate


@named
def previous_update_filter(
    max_distance: Threshold = 0.97,
    temperature: Threshold | None = None,
) -> Reducer:
    r"""GAF against the past: the mean of the rows that point where the last update did.

    Also known as: temporal GAF.

    .. math:: A = \{i : 1 - \cos(g_i, u_{t-1}) \le \tau\}, \qquad
        u_t = \sum_{i \in A} w_i g_i \Big/ \sum_{i \in A} w_i

    Like :func:`cosine_filter`, but no row is special for being first.

    Guarantees: the order of the rows is irrelevant; in the convex hull of the rows;
    scaling all rows scales the update; lengths of rows do not enter the decision.
    Edge cases: at the first step, and after a step in which nothing passed, there is
    nothing to compare with: all rows pass. A zero row has no direction: left out, as
    soon as there is something to compare with. Nobody passes: zero, not ready.

    ``weights``: sample counts: a row of weight 2 is two equal rows.

    Args:
      max_distance: largest cosine distance accepted, in [0, 2]. A number, array or
        schedule.
      temperature: None for a hard threshold; else every row counts by the gate
        sigmoid((max_distance - distance) / temperature).

    Returns:
      A :class:`Reducer` with ``accepted``, ``cosine_mean``, ``cosine_min`` in its
      state.

    Raises:
      ValueError: a static argument is out of range.

    Cost: one Gramian, O(B) for the decision, one combination; one array like the
    parameters kept.

    References: a variant of `GAF <https://arxiv.org/abs/2412.18052>`_ (2024) that its
    readers asked for.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = previous_update_filter(0.5), jnp.zeros(2)
      >>> state = rule.init(params)
      >>> for rows in ([[1., 0.], [3., 0.]], [[-1., 0.], [2., 1.]]):
      ...     update, state = rule.update(jnp.array(rows), state, params)
      ...     print(update)
      [2. 0.]
      [2. 1.]
    """
    _check.interval("max_distance", max_distance, 0, 2)
    if temperature is not None:
        _check.interval("temperature", temperature, 0, open_low=True)

    def init(params: Tree, dtype: Any) -> CosineFilterState:
        del params, dtype
        return CosineFilterState(*(jnp.zeros((), jnp.float32) for _ in range(3)))

    def weigh(gramian: Bordered, roster: Roster, state: Any) -> tuple[PerWeight, Any]:
        del state
        norms = root(gramian.diagonal())  # (B + 1,): the last update comes last
        scale = norms[:-1] * norms[-1]
        examined = roster.present & (scale > 0)
        cosine = gramian[-1, :-1] / positive_or_one(scale)
        passes = gate(cosine, max_distance, temperature, roster.step)
        passes = jnp.where(examined, passes, 0)
        passes = jnp.where(roster.present & (norms[-1] == 0), 1, passes)
        mass = passes * roster.weights
        count = jnp.maximum(examined.sum(dtype=cosine.dtype), 1)
        numbers = (
            passes.sum(),
            jnp.where(examined, cosine, 0).sum() / count,
            jnp.where(examined.any(), jnp.where(examined, cosine, 2).min(), 0),
        )
        weights = jnp.append(mass / positive_or_one(mass.sum()), 0)
        return weights, CosineFilterState(*(x.astype(jnp.float32) for x in numbers))

    return reducer(Weighting(weigh, init, remembers=True, degree=0))
