"""Rows are left out that disagree in sign with the others."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import SLACK
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, Number, PerRow, Threshold, Tree
from consensus_optax.weightings._pairs import cosines, off_diagonal


class SignFilterState(NamedTuple):
    """What the filter did in the last step; a leading axis over leaves by leaf.

    Attributes:
      accepted: () float32, rows accepted.
      agreement_mean: () float32, mean over rows of a row's agreement; 0 if none.
      agreement_min: () float32, the least of them; 0 if none.
    """

    accepted: Number
    agreement_mean: Number
    agreement_min: Number


@named
def sign_filter(min_agreement: Threshold = 0.5) -> Reducer:
    r"""Sign-agreement filter: the mean of the rows whose signs are those of the others.

    Also known as: sign-agreement filter.

    .. math:: a_{ij} = \frac12 \Big(1 + \frac{\langle \mathrm{sign}\,g_i,
        \mathrm{sign}\,g_j\rangle}{\|\mathrm{sign}\,g_i\| \|\mathrm{sign}\,g_j\|}\Big),
        \quad a_i = \sum_{j \ne i} w_j a_{ij} \Big/ \sum_{j \ne i} w_j, \quad
        u = \sum_{a_i \ge \tau} w_i g_i \Big/ \sum_{a_i \ge \tau} w_i

    For rows without zero entries, :math:`a_{ij}` is the share of coordinates in which
    two rows have the same sign. Random signs agree in half of them, so the default
    keeps what agrees no less than chance.

    Guarantees: the order of the rows is irrelevant; in the convex hull of the rows;
    lengths of rows do not enter the decision; scaling all rows scales the update.
    Edge cases: a single row has nobody to agree with: zero, not ready. A zero row has
    no signs: left out, and no vote on others.

    ``weights``: votes, and what the mean is weighted by.

    Args:
      min_agreement: least mean share of agreeing signs, in [0, 1]. A number, array or
        schedule.

    Returns:
      A :class:`Reducer` with ``accepted``, ``agreement_mean``, ``agreement_min`` in
      its state.

    Raises:
      ValueError: a static argument is out of range.

    Cost: one Gramian of signs and one combination. A leaf whose rows are products of
    two vectors stays factored; any other is multiplied out, one after the other.

    References: the sign gate that readers of `GAF <https://arxiv.org/abs/2412.18052>`_
    (2024) asked for; the formula is ours.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = sign_filter(), jnp.zeros(3)
      >>> rows = jnp.array([[1., 2., 3.], [3., 4., 5.], [-9., -9., 9.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [2.0, 3.0, 4.0]
    """
    _check.interval("min_agreement", min_agreement, 0, 1)

    def init(params: Tree, dtype: Any) -> SignFilterState:
        del params, dtype
        return SignFilterState(*(jnp.zeros((), jnp.float32) for _ in range(3)))

    def weigh(signs: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        del state
        cosine, moving = cosines(signs)
        pairs = off_diagonal(moving & roster.present)
        votes = jnp.where(pairs, roster.shares[None, :], 0)
        total = votes.sum(1)
        judged = total > 0
        share = (votes * (1 + cosine) / 2).sum(1) / jnp.where(judged, total, 1)
        least = _check.value_at(min_agreement, roster.step, share.dtype)
        accepted = judged & (share >= least - SLACK)
        mass = jnp.where(accepted, roster.weights, 0)
        count = jnp.maximum(judged.sum(dtype=share.dtype), 1)
        numbers = (
            accepted.sum(),
            jnp.where(judged, share, 0).sum() / count,
            jnp.where(judged.any(), jnp.where(judged, share, 2).min(), 0),
        )
        weights = mass / jnp.where(accepted.any(), mass.sum(), 1)
        return weights, SignFilterState(*(x.astype(jnp.float32) for x in numbers))

    return reducer(Weighting(weigh, init, reads=Reads.SIGNS))
