"""The largest group of rows that point where one of them points."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import SLACK, positive_or_one
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, PerRow, Threshold, Tree
from consensus_optax.weightings._cosine_filter import CosineFilterState
from consensus_optax.weightings._pairs import cosines, off_diagonal


@named
def neighbor_filter(max_distance: Threshold = 0.97) -> Reducer:
    r"""Pairwise GAF: the row with most neighbours, averaged with its neighbours.

    Also known as: pairwise GAF.

    .. math:: N_i = \{j : 1 - \cos(g_i, g_j) \le \tau\}, \quad
        c = \arg\max_i \sum_{j \in N_i} w_j, \quad
        u = \sum_{j \in N_c} w_j g_j \Big/ \sum_{j \in N_c} w_j

    Like :func:`cosine_filter`, but no row is special for being first: an outlier there
    costs nothing.

    Guarantees: in the convex hull of the rows; scaling all rows scales the update; who
    is a neighbour does not depend on lengths; the order of the rows is irrelevant,
    unless two rows tie in weight of neighbours and in sum of cosines with them (then
    the first).
    Edge cases: no row has a neighbour (so also a single row): zero, not ready, as with
    :func:`cosine_filter`. A zero row has no direction: nobody's neighbour.

    ``weights``: votes in the count of neighbours, and what the mean is weighted by.

    Args:
      max_distance: largest cosine distance of neighbours, in [0, 2]. A number, array or
        schedule.

    Returns:
      A :class:`Reducer` with ``accepted`` (neighbours of the chosen row), and
      ``cosine_mean``, ``cosine_min`` (over all pairs) in its state.

    Raises:
      ValueError: a static argument is out of range.

    Cost: one Gramian, O(B^2) for the decision, one combination.

    References: a variant of `GAF <https://arxiv.org/abs/2412.18052>`_ (2024) that its
    readers asked for.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = neighbor_filter(0.5), jnp.zeros(2)
      >>> rows = jnp.array([[-1., 0.], [1., 0.], [1., 1.]])
      >>> update, state = rule.update(rows, rule.init(params), params)
      >>> update.tolist(), float(state.rule_state.accepted)
      ([1.0, 0.5], 1.0)
    """
    _check.interval("max_distance", max_distance, 0, 2)

    def init(params: Tree, dtype: Any) -> CosineFilterState:
        del params, dtype
        return CosineFilterState(*(jnp.zeros((), jnp.float32) for _ in range(3)))

    def weigh(gramian: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        del state
        cosine, moving = cosines(gramian)
        pairs = off_diagonal(moving & roster.present)
        limit = _check.value_at(max_distance, roster.step, cosine.dtype)
        near = pairs & (1 - cosine <= limit + SLACK)
        itself = jnp.eye(near.shape[0], dtype=bool) & near.any(1)[:, None]
        shares = jnp.where(near | itself, roster.shares[None, :], 0)
        votes = shares.sum(1)
        closeness = (shares * jnp.where(itself, 1, cosine)).sum(1)
        most = near.any(1) & (votes >= votes.max() * (1 - SLACK))
        closeness = jnp.where(most, closeness, -jnp.inf)
        chosen = jnp.argmax(closeness >= closeness.max() - SLACK)  # of ties the first
        mass = jnp.where((near | itself)[chosen], roster.weights, 0)
        weights = mass / positive_or_one(mass.sum())
        count = pairs.sum(dtype=cosine.dtype)
        numbers = (
            near[chosen].sum(),
            jnp.where(pairs, cosine, 0).sum() / jnp.maximum(count, 1),
            jnp.where(count > 0, jnp.where(pairs, cosine, 2).min(), 0),
        )
        return weights, CosineFilterState(*(x.astype(jnp.float32) for x in numbers))

    return reducer(Weighting(weigh, init, degree=0))
