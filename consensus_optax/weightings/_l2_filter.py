"""Rows are left out that lie far from the others."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import SLACK, root
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, Number, PerRow, Threshold, Tree
from consensus_optax.weightings._pairs import distances, lower_median, medoid


class L2FilterState(NamedTuple):
    """What the filter did in the last step; a leading axis over leaves by leaf.

    Attributes:
      accepted: () float32, rows accepted.
      distance_median: () float32, median of the distances to the reference.
      distance_max: () float32, the largest of them.
    """

    accepted: Number
    distance_median: Number
    distance_max: Number


@named
def l2_filter(
    max_distance: Threshold = 2.0,
    reference: str = "medoid",
    relative: bool = True,
) -> Reducer:
    r"""L2-distance filter: the mean of the rows near their middle.

    .. math:: u = \sum_{d_i \le c\,m} w_i g_i \Big/ \sum_{d_i \le c\,m} w_i, \qquad
        d_i = \|g_i - g_r\|, \quad m = \mathrm{median}_i\, d_i

    with :math:`g_r` the medoid, here the row with the least median of distances to the
    others (which fewer than half of the rows cannot drag away, however far they are),
    or the mean.
    ``relative=False``: :math:`u` is over :math:`d_i \le c`.

    Guarantees: the order of the rows is irrelevant (unless two rows tie for the
    medoid: then the first); in the convex hull of the rows; adding one vector to all
    rows adds it to the update; with ``relative``, scaling all rows scales it.
    Edge cases: equal rows, a single row: all accepted. The reference row is always
    accepted, so only ``reference="mean"`` can leave nobody: zero, not ready. The
    median is the lower one, and does not count the medoid itself.

    ``weights``: votes in medoid and median, and what the mean is weighted by.

    Args:
      max_distance: c >= 0, in units of the median distance, or an absolute length. A
        number, array or schedule.
      reference: ``"medoid"`` or ``"mean"``.
      relative: whether to measure in units of the median distance.

    Returns:
      A :class:`Reducer` with ``accepted``, ``distance_median``, ``distance_max`` in
      its state.

    Raises:
      ValueError: a static argument is out of range.

    Cost: one Gramian or two, O(B^2 log B) for the decision, one combination.

    References: the L2 gate that readers of `GAF <https://arxiv.org/abs/2412.18052>`_
    (2024) asked for; the formula is ours.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = l2_filter(), jnp.zeros(1)
      >>> rows = jnp.array([[1.], [2.], [3.], [40.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [2.0]
    """
    _check.interval("max_distance", max_distance, 0)
    _check.one_of("reference", reference, ("medoid", "mean"))
    _check.flag("relative", relative)

    def init(params: Tree, dtype: Any) -> L2FilterState:
        del params, dtype
        return L2FilterState(*(jnp.zeros((), jnp.float32) for _ in range(3)))

    def weigh(products: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        del state
        counted = roster.weights
        if reference == "mean":
            distance = root(products.diagonal())
        else:
            pairwise = distances(products)
            middle = medoid(pairwise, roster)
            distance = pairwise[middle]
            counted = counted.at[middle].set(0)
        median = lower_median(distance, counted)
        limit = _check.value_at(max_distance, roster.step, distance.dtype)
        # Rows at equal distances are accepted together, however these round.
        limit = limit * median * (1 + SLACK) if relative else limit
        accepted = roster.present & (distance <= limit)
        mass = jnp.where(accepted, roster.weights, 0)
        weights = mass / jnp.where(accepted.any(), mass.sum(), 1)
        numbers = (
            accepted.sum(),
            median / roster.scale,
            jnp.where(roster.present, distance, 0).max() / roster.scale,
        )
        return weights, L2FilterState(*(x.astype(jnp.float32) for x in numbers))

    reads = Reads.CENTERED if reference == "mean" else Reads.AFFINE
    return reducer(Weighting(weigh, init, reads=reads, degree=0 if relative else None))
