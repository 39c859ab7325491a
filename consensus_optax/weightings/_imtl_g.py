"""The step that every row projects onto equally."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax._rules.arithmetic import root
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import cancels, ratio
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, PerRow
from consensus_optax.weightings._spectrum import spectrum


@named
def imtl_g() -> Reducer:
    r"""IMTL-G: the step on whose line all rows have projections of one length.

    Also known as: IMTL-G, impartial.

    .. math:: u = J^T \lambda, \qquad \lambda = v / \sum_i v_i, \qquad
        v = G^+ \sqrt{\mathrm{diag}\,G}

    With linearly dependent rows the projections are equal in the least-squares sense,
    by the pseudo-inverse (Quinton and Rey's generalisation).

    Guarantees, for linearly independent rows: :math:`\langle u, g_i\rangle / \|g_i\|`
    is the same for all i, and :math:`\sum \lambda_i = 1`; the order of the rows is
    irrelevant; scaling all rows scales it.
    Edge cases: :math:`\sum v_i = 0` to rounding: zero, not ready. Weights may be
    negative, and where :math:`\sum v_i < 0` (rows of very unequal lengths) u opposes
    *every* row, as in the authors' code. A zero row gets weight 0. One row, or all
    equal: that row. Eigenvalues of the Gramian below 4 B eps of the largest count as 0:
    in float32 a row a thousand times longer than the others hides them.
    Precision: about :math:`\kappa^2` eps, with :math:`\kappa` the ratio of the
    largest to the least singular value of the rows, since a Gramian squares it, and
    times :math:`\sum |v_i| / |\sum v_i|`; up to :math:`64 \kappa^2` eps where the rows
    depend on each other.
    ``weights``: 0 = absent; other values do not matter.

    Returns:
      A :class:`Reducer`.

    Cost: one Gramian, one eigenvalue decomposition of [B, B], one combination.

    References: Liu et al., `Towards Impartial Multi-task Learning
    <https://openreview.net/forum?id=IMPnRXEWpvr>`_, 2021; Quinton and Rey, `Jacobian
    Descent for Multi-Objective Optimization <https://arxiv.org/abs/2406.16232>`_, 2024.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = imtl_g(), jnp.zeros(2)
      >>> rows = jnp.array([[3., 0.], [0., 1.]])
      >>> update, _ = rule.update(rows, rule.init(params), params)
      >>> [round(float(x), 3) for x in update]
      [0.75, 0.75]
    """

    def weigh(gramian: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        unit = ratio(gramian, jnp.trace(gramian))
        lengths = root(unit.diagonal())
        given = spectrum(unit, roster)
        v = jnp.where(lengths > 0, given.pseudo_inverse(lengths), 0)
        total = v.sum()
        # Rounding of a sum of terms that are divided by the least eigenvalue.
        largest = given.pseudo_inverse_norm() * lengths.sum()
        sound = jnp.abs(total) > 8 * jnp.finfo(v.dtype).eps * largest
        sound &= ~cancels(gramian, v)
        return jnp.where(sound, v / jnp.where(sound, total, 1), 0), state

    return reducer(Weighting(weigh, degree=0))
