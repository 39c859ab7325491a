"""Divide and conquer: without the rows that stand out along the widest direction."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.distances import among_smallest, rows_and_bad, shares_of
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, PerRow
from consensus_optax.weightings._covariance import about_mean, covariance


@named
def divide_and_conquer(num_byzantine: int, filter_fraction: float = 1.0) -> Reducer:
    r"""Divide and conquer (DnC): drop the rows that stand out most, average the others.

    Also known as: DnC.

    .. math:: s_i = \langle g_i - \bar g, v \rangle^2, \qquad
        u = \frac{1}{|S|} \sum_{i \in S} g_i

    where v is the top right-singular vector of the centred rows and S leaves out the
    ceil(c f) rows of largest score. The scores are the squared entries of the top
    eigenvector of the centred Gramian, times its eigenvalue.

    The authors take the scores from a random sample of coordinates, and intersect what
    several samples leave, because a singular vector of all coordinates was too
    expensive. The Gramian contains all of them at little cost, so there is nothing to
    sample: this is their method with one sample of everything, and needs no key.

    It is made for attackers that pull together: a row far away in a direction of its
    own, or hidden behind one that is farther, is not seen.

    Guarantees: in the convex hull of the rows; the order of the rows is irrelevant
    (unless the two largest eigenvalues are equal: then v is any vector between);
    shifting all rows shifts the update, scaling them scales it, by any number.
    Edge cases: all rows equal: that row. Rows that tie for the last place share it
    equally. Fewer than 2f + 1 rows present: f becomes (n - 1) // 2 (which loses
    nothing if absent rows are arbitrary ones, as rows with an inf or a nan are), and
    one row is kept at least. No row: zero, not ready.
    ``weights``: each row counts as one; those kept are averaged by weight.

    Args:
      num_byzantine: f, the largest number of arbitrary rows.
      filter_fraction: c > 0, rows dropped for each arbitrary row; the paper's 1.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: an argument is out of range; when traced, n > 2f does not hold (the
        honest rows must be a majority), or n > ceil(c f).

    Cost: one Gramian (two if rows are nearly equal), one eigendecomposition of it, one
    combination.

    References: Shejwalkar and Houmansadr, `Manipulating the Byzantine: Optimizing Model
    Poisoning Attacks and Defenses for Federated Learning
    <https://doi.org/10.14722/ndss.2021.24498>`_, 2021 (Algorithm 2).

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = divide_and_conquer(1), jnp.zeros(1)
      >>> rows = jnp.array([[1.], [2.], [3.], [-90.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [2.0]
    """
    _check.count("num_byzantine", num_byzantine, minimum=0)
    _check.static_number("filter_fraction", filter_fraction, 0, open_low=True)
    drops = [_ceil(filter_fraction * f) for f in range(num_byzantine + 1)]

    def weigh(products: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        size, f = roster.weights.shape[0], num_byzantine
        n, bad = rows_and_bad(roster.present, f)
        _check.enough_rows(
            "filter_fraction",
            filter_fraction,
            size,
            drops[-1] + 1,
            f"n > ceil(c f), {f=}",
        )
        one = roster.present.astype(products.dtype)
        matrix, variance = covariance(about_mean(products, one), one)
        _, vectors = jnp.linalg.eigh(matrix)  # ascending
        scores = jnp.where(variance > 0, jnp.abs(vectors[:, -1]), 1)
        dropped = jnp.array(drops, jnp.int32)[bad]
        # Entries of a unit vector, of which those about 0 are 0 to its rounding.
        same = 4 * size**0.5 * float(jnp.finfo(scores.dtype).eps)
        kept = among_smallest(scores, jnp.maximum(n - dropped, 1), roster.present, same)
        return shares_of(kept * roster.weights), state

    return reducer(Weighting(weigh, reads=Reads.AFFINE, degree=0))


def _ceil(number: float) -> int:
    """The integer above, where a number beyond one by rounding is that one."""
    return math.ceil(number * (1 - 1e-9))
