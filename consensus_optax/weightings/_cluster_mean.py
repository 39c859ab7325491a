"""The mean of the means of clusters, without the clusters that are outliers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, Count, Gramian, PerRow, Tree
from consensus_optax.weightings._pairs import distances, medoid


class ClusterMeanState(NamedTuple):
    """What the clustering did in the last step; a leading axis over leaves by leaf.

    Attributes:
      sizes: (num_clusters,) int32, rows in every cluster, in the order of their making.
      rejected: () int32, rows in clusters that were too small.
    """

    sizes: Array
    rejected: Count


@named
def cluster_mean(
    num_clusters: int = 2, min_size: int = 2, iterations: int = 10
) -> Reducer:
    r"""Mean of k-means clusters, small clusters rejected as outliers.

    Also known as: k-means consensus.

    .. math:: u = \frac{1}{|K|} \sum_{c \in K} \mu_c, \qquad
        K = \{c : |C_c| \ge \texttt{min\_size}\}, \quad
        \mu_c = \sum_{i \in C_c} w_i g_i \Big/ \sum_{i \in C_c} w_i

    Clusters come from Lloyd's iteration, begun at the row with the least median of
    distances to the others and then always at the row farthest from those chosen, so
    that nothing is drawn and an outlier makes a cluster of its own, to be rejected.
    Every cluster left counts the same, however many rows it has: a minority is heard.

    Guarantees: in the convex hull of the rows; scaling or shifting all rows does so to
    the update; the order of the rows is irrelevant, unless distances tie (then the
    first row).
    Edge cases: no cluster of ``min_size``: zero, not ready (so also a single row, with
    ``min_size`` above 1). Equal rows: that row. Fewer distinct rows than clusters:
    empty clusters, which do not count.

    ``weights``: weigh the mean of a cluster; sizes count rows.

    Args:
      num_clusters: k, with one cluster to spare for every outlier expected.
      min_size: rows in the smallest cluster that counts.
      iterations: of Lloyd's algorithm, always all of them.

    Returns:
      A :class:`Reducer` with ``sizes`` and ``rejected`` in its state.

    Raises:
      ValueError: a static argument is out of range.

    Cost: one Gramian or two, O(k B^2) per iteration, one combination.

    References: the clustering that readers of `GAF <https://arxiv.org/abs/2412.18052>`_
    (2024) asked for; Gonzalez, `Clustering to minimize the maximum intercluster
    distance <https://doi.org/10.1016/0304-3975(85)90224-5>`_, 1985 (the beginning).

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = cluster_mean(3), jnp.zeros(1)
      >>> rows = jnp.array([[1.], [1.], [5.], [5.], [-99.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [3.0]
    """
    _check.count("num_clusters", num_clusters)
    _check.count("min_size", min_size)
    _check.count("iterations", iterations)

    def init(params: Tree, dtype: Any) -> ClusterMeanState:
        del params, dtype
        zeros = jnp.zeros(num_clusters, jnp.int32)
        return ClusterMeanState(zeros, jnp.zeros((), jnp.int32))

    def weigh(products: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        del state
        members = _farthest_first(distances(products), roster, num_clusters)

        def lloyd(_: Any, members: Array) -> Array:
            """Membership (k, B) after one round: means, then the nearest of them."""
            means = _shares(members, roster)
            inner = means @ products
            lengths = (inner * means).sum(1)
            apart = lengths[:, None] - 2 * inner  # less ‖g_i‖², the same for all
            apart = jnp.where(members.any(1)[:, None], apart, jnp.inf)
            nearest = jax.nn.one_hot(jnp.argmin(apart, 0), num_clusters, axis=0)
            return (nearest > 0) & roster.present[None, :]

        members = lax.fori_loop(0, iterations, lloyd, members)
        sizes = members.sum(1, dtype=jnp.int32)
        kept = sizes >= min_size
        weights = jnp.where(kept[:, None], _shares(members, roster), 0).sum(0)
        weights /= jnp.maximum(kept.sum(), 1).astype(weights.dtype)
        rejected = jnp.where(kept, 0, sizes).sum(dtype=jnp.int32)
        return weights, ClusterMeanState(sizes, rejected)

    return reducer(Weighting(weigh, init, reads=Reads.AFFINE, degree=0))


def _shares(members: Array, roster: Roster) -> Array:
    """(k, B): coefficients of the rows in the mean of every cluster."""
    mass = jnp.where(members, roster.weights[None, :], 0)
    total = mass.sum(1, keepdims=True)
    return mass / positive_or_one(total)


def _farthest_first(pairwise: Array, roster: Roster, num_clusters: int) -> Array:
    """(k, B) bool: the rows that clusters begin with, one each."""
    chosen = [medoid(pairwise, roster)]
    for _ in range(1, num_clusters):
        nearest = jnp.stack([pairwise[index] for index in chosen]).min(0)
        chosen.append(jnp.argmax(jnp.where(roster.present, nearest, -1)))
    indices = jnp.arange(roster.weights.shape[0])
    return jnp.stack([indices == index for index in chosen])
