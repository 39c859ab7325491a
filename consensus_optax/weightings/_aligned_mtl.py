"""Rows made orthogonal and equally long, then weighted."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import root
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import cancels, ratio
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, PerRow
from consensus_optax.weightings import _preference
from consensus_optax.weightings._preference import Preference
from consensus_optax.weightings._spectrum import spectrum


@named
def aligned_mtl(preference: Preference | None = None, scale: str = "min") -> Reducer:
    r"""Aligned-MTL: a weighted sum of rows whose stack was given equal singular values.

    Also known as: Aligned-MTL, aligned.

    .. math:: u = J^T \lambda, \qquad
        \lambda = \sqrt{\sigma}\, V \Lambda^{-1/2} V^T p, \qquad G = V \Lambda V^T

    over the eigenvalues that are not 0; p = 1/N or the preference. The stack
    :math:`\sqrt\sigma V \Lambda^{-1/2} V^T J` is the closest one whose rows are
    orthogonal and have squared length :math:`\sigma`.

    Guarantees, for linearly independent rows: :math:`\langle u, \hat g_i\rangle =
    \sigma p_i` for the rows :math:`\hat g_i` of that stack, so no one of *them* is
    opposed; the order of the rows is irrelevant; scaling all rows scales it.
    Edge cases: one row: that row. All equal: that row,
    with ``"min"``. All zero, or a preferred sum of rows that is: zero, not ready.
    Eigenvalues below 4 B eps of the largest count as 0:
    the least of the others decides the length, so nearly dependent rows give a short
    step, in float32 an uncertain one.
    ``weights``: rows count as weight over the mean weight, times p. (Two equal rows are
    not one row of weight 2: they change the eigenvalues.)

    Args:
      preference: (B,) numbers >= 0 instead of 1/N each.
      scale: what :math:`\sigma` is of the eigenvalues: ``"min"`` as in the paper,
        ``"median"`` (the lower one), or ``"mean"`` (``"rmse"`` in the authors' code).

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: a static argument is out of range; when traced, ``preference`` is not
        (B,).

    Cost: one Gramian, one eigenvalue decomposition of [B, B], one combination.

    References: Senushkin et al., `Independent Component Alignment for Multi-Task
    Learning <https://arxiv.org/abs/2305.19000>`_, 2023.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = aligned_mtl(), jnp.zeros(2)
      >>> rows = jnp.array([[4., 0.], [0., 1.]])
      >>> update, _ = rule.update(rows, rule.init(params), params)
      >>> [round(float(x), 3) for x in update]
      [0.5, 0.5]
    """
    _preference.check(preference)
    _check.one_of("scale", scale, ("min", "median", "mean"))

    def weigh(gramian: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        given = spectrum(ratio(gramian, jnp.trace(gramian)), roster)
        values, kept = given.values, given.kept  # ascending: those kept come last
        rank, size = jnp.sum(kept), values.shape[0]
        if scale == "mean":
            total = jnp.where(kept, values, 0).sum()
            sigma = ratio(total, rank.astype(values.dtype))
        else:
            above = 0 if scale == "min" else (rank - 1) // 2
            sigma = values[jnp.clip(size - rank + above, 0, size - 1)]
        wanted = _preference.weighted(preference, roster)
        stretch = root(ratio(sigma, values))
        weights = given.apply(stretch, wanted)
        largest = jnp.max(jnp.where(kept, stretch, 0)) * jnp.sum(wanted)
        rounding = 8 * jnp.finfo(weights.dtype).eps * largest
        nothing = jnp.max(jnp.abs(weights)) <= rounding
        nothing |= cancels(gramian, weights)
        return jnp.where(nothing, 0, weights), state

    return reducer(Weighting(weigh, degree=0))
