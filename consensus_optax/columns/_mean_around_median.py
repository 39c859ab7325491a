"""The coordinate-wise mean around the median."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.distances import num_present, rows_and_bad
from consensus_optax._rules.kinds import Columns
from consensus_optax._rules.order_statistics import order_statistics, total
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array
from consensus_optax.columns._median import halfway, middle_ranks


@named
def mean_around_median(num_byzantine: int) -> Reducer:
    r"""MeaMed: in every coordinate the mean of the n - f entries nearest the median.

    Also known as: MeaMed.

    .. math:: u_p = \frac{1}{n - f} \sum_{i \in N_p} g_{ip}

    where :math:`N_p` are the n - f rows with the least :math:`|g_{ip} - m_p|` and
    :math:`m_p` is the median (the mean of the two middle entries if n is even).

    Guarantees: the order of the rows is irrelevant, whoever ties; shifting all rows
    shifts the update, scaling them scales it, by any number; each coordinate is no
    farther from the median than the median is from the farthest of any n - f rows.
    Edge cases: ``num_byzantine=0`` is the mean. Fewer than 2f + 1 rows present: f
    becomes (n - 1) // 2 (which loses nothing if absent rows are arbitrary ones, as rows
    with an inf or a nan are). No row: zero, not ready.
    ``weights``: each row counts as one for the median and for who is near; those near
    are averaged by weight. Rows tied for the last place each get the same share of it.

    Args:
      num_byzantine: f, the largest number of arbitrary rows.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: ``num_byzantine`` is no count; when traced, n > 2f does not hold: the
        median needs a majority of honest rows.

    Cost: rows are multiplied out, one leaf at a time; B log(B)^2 / 2 comparisons for
    every coordinate, beyond 64 rows 96 B additions.

    References: Xie et al., `Generalized Byzantine-tolerant SGD
    <https://arxiv.org/abs/1802.10116>`_, 2018.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = mean_around_median(1), jnp.zeros(1)
      >>> rows = jnp.array([[1.], [2.], [3.], [-90.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [2.0]
    """
    _check.count("num_byzantine", num_byzantine, minimum=0)

    def reduce(rows: Array, weights: Array) -> Array:
        _, bad = rows_and_bad(weights > 0, num_byzantine)
        return nearest_mean(rows, weights, bad, num_byzantine)

    return reducer(Columns(reduce))


def nearest_mean(rows: Array, weights: Array, num_dropped: Array, if_all: int) -> Array:
    """Mean of all entries but ``num_dropped`` far from the median: (B, P) to (P,).

    ``if_all`` is that number where all rows are present, known when traced.
    """
    present = weights > 0
    count = num_present(present)
    center = halfway(*order_statistics(rows, present, middle_ranks))
    distances = jnp.abs(rows - center[None, :])

    def last(n: Any) -> tuple[Any]:
        return ((n - 1 - if_all) if isinstance(n, int) else n - 1 - num_dropped,)

    (radius,) = order_statistics(distances, present, last)
    one = present.astype(rows.dtype)

    def observe(i: Any, distance: Array) -> tuple[Array, ...]:
        """Those within the radius, and those on it, who share the last places."""
        inside = jnp.where(distance < radius, one[i], 0)
        edge = jnp.where(distance == radius, one[i], 0)
        mass, edge_mass = inside * weights[i], edge * weights[i]
        moved = jnp.where(distance <= radius, rows[i] - center, 0)
        return mass * moved, mass, inside, edge_mass * moved, edge_mass, edge

    moved, mass, num_inside, edge_moved, edge_mass, num_edge = total(observe, distances)
    places = (count - num_dropped).astype(rows.dtype) - num_inside
    share = places / positive_or_one(num_edge)
    moved, mass = moved + share * edge_moved, mass + share * edge_mass
    mean = center + moved / positive_or_one(mass)
    return jnp.where(count > 0, mean, 0)
