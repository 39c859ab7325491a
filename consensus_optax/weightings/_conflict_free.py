"""The direction at one angle to all rows."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import cancels, cosines, product, ratio
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, PerRow
from consensus_optax.weightings import _preference
from consensus_optax.weightings._preference import Preference
from consensus_optax.weightings._spectrum import spectrum


@named
def conflict_free(preference: Preference | None = None) -> Reducer:
    r"""ConFIG: the direction with one cosine to all rows, as long as the rows agree.

    Also known as: ConFIG.

    .. math:: u = \Big(\sum_i w_i \langle g_i, d\rangle\Big)\, d, \qquad
        d = \frac{U^+ p}{\|U^+ p\|}, \qquad U_i = g_i / \|g_i\|

    p = 1 or the preference: cosines in those proportions. The length is the sum of the
    rows' projections, so it falls where rows oppose each other.

    Guarantees, for linearly independent rows: the cosines of u with the rows are
    proportional to p, so none is opposed; the order of the rows is irrelevant; scaling
    all rows scales it, and scaling one changes the length alone.
    Edge cases: with linearly dependent rows the cosines are those of least squares and
    may be negative. :math:`U^+ p = 0` or a sum of projections that is 0 to rounding:
    zero, not ready. A zero row sets no direction. One row: that row. All equal: N times
    that row.
    Precision: about :math:`\kappa^2` eps, with :math:`\kappa` the ratio of the
    largest to the least singular value of the rows' directions, since a Gramian squares
    it; up to :math:`64 \kappa^2` eps where the rows depend on each other.
    ``weights``: sample counts in the length, relative to the mean weight. The direction
    is the same for all.

    Args:
      preference: (B,) numbers >= 0 instead of 1 each.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: a static argument is out of range; when traced, ``preference`` is not
        (B,).

    Cost: one Gramian, one eigenvalue decomposition of [B, B], one combination.

    References: Liu et al., `ConFIG: Towards Conflict-free Training of Physics Informed
    Neural Networks <https://arxiv.org/abs/2408.11104>`_, 2024.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = conflict_free(), jnp.zeros(2)
      >>> rows = jnp.array([[3., 0.], [0., 1.]])
      >>> update, _ = rule.update(rows, rule.init(params), params)
      >>> [round(float(x), 3) for x in update]
      [2.0, 2.0]
    """
    _preference.check(preference)

    def weigh(gramian: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        units, lengths = cosines(gramian)
        moving = lengths > 0
        wanted = jnp.where(moving, _preference.of_rows(preference, roster), 0)
        direction = jnp.where(moving, spectrum(units, roster).pseudo_inverse(wanted), 0)
        reached = product(units, direction)
        square = product(direction, reached)  # of the direction's length
        terms = _preference.relative_weights(roster) * lengths
        eps = jnp.finfo(square.dtype).eps
        agreement = product(terms, reached)
        # What it is a difference of: rows that sum to zero have no length to give.
        addends = product(terms, product(jnp.abs(units), jnp.abs(direction)))
        sound = square > 100 * eps * product(wanted, wanted)
        sound &= jnp.abs(agreement) > 8 * eps * addends
        along = jnp.where(sound, ratio(agreement, square), 0)
        weights = along * ratio(direction, lengths)
        return jnp.where(cancels(gramian, weights), 0, weights), state

    return reducer(Weighting(weigh, degree=0))
