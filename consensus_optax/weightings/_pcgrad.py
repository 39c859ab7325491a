"""Rows with what opposes other rows taken out, one after the other."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._rows.varying import varying_like
from consensus_optax._rules.blocks_of_rows import by_blocks
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import cancels, product, ratio
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, Gramian, PerRow
from consensus_optax.weightings._preference import relative_weights
from consensus_optax.weightings._surgery import Rotation, random_orders, unchanged


@named
def pcgrad(key: Array) -> Reducer:
    r"""PCGrad: takes out of each row what opposes the others, in random order; the sum.

    Also known as: PCGrad, gradient surgery, project conflicts.

    .. math:: h \leftarrow g_i; \quad \text{for } j \ne i \text{ in random order:} \quad
        h \leftarrow h - \frac{\min(\langle h, g_j\rangle, 0)}{\|g_j\|^2}\, g_j; \qquad
        u = \sum_i h_i

    Everything is read from the Gramian: h is a vector of B coefficients.

    Guarantees: the sum of the rows where no two oppose each other; no row is opposed
    if there are two; the order of the rows is irrelevant in distribution. With three
    rows or more the update may oppose some.
    Edge cases: one row: that row. All equal: N times that row. A zero row takes
    nothing out. Two opposite rows, or what else cancels to 7e-4 of the rows (1e-4 in
    float64): zero, not ready.
    ``weights``: sample counts of the sum, relative to the mean weight; a row takes
    part in all projections whatever its weight, and once.

    Args:
      key: ``jax.random.key`` or a legacy key. The orders of a step are drawn with
        ``jax.random.fold_in(key, step)``, so no key is in the state.

    Returns:
      A :class:`Reducer`.

    Cost: one Gramian, B sweeps over a [B, B] array, one combination; three arrays of
    B x B numbers at once, since 128 rows are projected at a time.

    References: Yu et al., `Gradient Surgery for Multi-Task Learning
    <https://arxiv.org/abs/2001.06782>`_, 2020.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> rule, params = pcgrad(jax.random.key(0)), jnp.zeros(2)
      >>> rows = jnp.array([[1., 0.], [-1., 1.]])
      >>> print(rule.update(rows, rule.init(params), params)[0])
      [0.5 1.5]
    """
    _check.key("key", key)

    def weigh(gramian: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        size = roster.weights.shape[0]
        counts, squares = relative_weights(roster), gramian.diagonal()

        def project_rows(rows: Array, there: Array) -> Array:
            order = random_orders(key, roster, rows)
            indices = jnp.arange(rows.shape[0])

            def project(k: Array, rotation: Rotation) -> Rotation:
                others = order[:, k]  # (b,)
                against = jnp.minimum(rotation.products[indices, others], 0)
                taken = jnp.where(others != rows, ratio(against, squares[others]), 0)
                return rotation.plus(-taken, others, gramian)

            start = varying_like(unchanged(rows, gramian), gramian, roster.weights)
            end = lax.fori_loop(0, size, project, start)
            return product(jnp.where(there, counts[rows], 0), end.weights)

        weights = by_blocks(project_rows, size).sum(0)
        return jnp.where(cancels(gramian, weights), 0, weights), state

    return reducer(Weighting(weigh, degree=0))
