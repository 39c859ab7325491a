"""Nearest-neighbor mixing: every row becomes the mean of those near it."""

from __future__ import annotations

import functools

import jax

from consensus_optax import _check
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.distances import (
    among_smallest,
    rows_and_bad,
    squared_distances,
)
from consensus_optax._rules.kinds import Mixing, Reads, Roster
from consensus_optax._running.named import named
from consensus_optax._typing import Gramian, PerNewRow, RowMap


@named
def nearest_neighbor_mixing(num_byzantine: int) -> Mixing:
    r"""Nearest-neighbor mixing (NNM): rows become means of their neighbourhoods.

    Also known as: NNM.

    .. math:: g_i \leftarrow \frac{1}{n - f} \sum_{j \in N_i} g_j

    :math:`N_i` are the n - f rows nearest to row i, itself among them. Before a robust
    rule it makes honest rows more alike, so that the rule can tell them better where
    their data differ.

    Guarantees: mixed rows are in the convex hull of the rows; the order of the rows is
    irrelevant to a rule to which it is; shifting and scaling the rows does the same to
    the mixed ones.
    Edge cases: ``num_byzantine=0``: every row becomes the mean. Rows that tie for the
    last place share it equally. Fewer than 2f + 1 rows present: f becomes (n - 1) // 2
    (which loses nothing if absent rows are arbitrary ones, as rows with an inf or a nan
    are).
    ``weights``: each row counts as one for who is near; those near are averaged by
    weight, and each mixed row keeps the weight of its row.

    Args:
      num_byzantine: f, the largest number of arbitrary rows.

    Returns:
      A :class:`Mixing`, for ``co.after``.

    Raises:
      ValueError: ``num_byzantine`` is no count; when traced, n > 2f does not hold: the
        honest rows must be a majority.

    Cost: one Gramian (and one of centred rows, where they are nearly equal),
    O(B^2 log B).

    References: Allouah et al., `Fixing by Mixing: A Recipe for Optimal Byzantine ML
    under Heterogeneity <https://arxiv.org/abs/2302.01772>`_, 2023.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> rule = co.after(co.nearest_neighbor_mixing(1), co.median())
      >>> rows, params = jnp.array([[1.], [2.], [3.], [-90.]]), jnp.zeros(1)
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [2.0]
    """
    _check.count("num_byzantine", num_byzantine, minimum=0)

    def mix(products: Gramian, roster: Roster) -> tuple[RowMap, PerNewRow]:
        n, bad = rows_and_bad(roster.present, num_byzantine)
        squares = squared_distances(products, roster.present)
        near = functools.partial(
            among_smallest,
            count=n - bad,
            present=roster.present,
        )
        matrix = jax.vmap(near)(squares) * roster.weights[None, :]
        total = matrix.sum(1, keepdims=True)
        return matrix / positive_or_one(total), roster.weights

    return Mixing(mix, reads=Reads.AFFINE, degree=0)
