"""The geometric median by smoothed Weiszfeld iterations, from inner products alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._rules.arithmetic import positive_or_one, root
from consensus_optax._rules.distances import shares_of, squared_distances
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import (
    Array,
    Flag,
    Gramian,
    Number,
    PerRow,
    Threshold,
    Tree,
)
from consensus_optax.weightings._pairs import majority

_TIE = 1 + 1e-4  # squared distances that differ by less are equal
_CONVERGED = 1e-3


class GeometricMedianState(NamedTuple):
    """How far the iterations came in the last step.

    Attributes:
      residual: () float32, norm of the gradient of the smoothed objective, whose terms
        have norms that sum to at most 1; 0 at the minimum.
      converged: () bool, whether it is at most 1e-3.
    """

    residual: Number
    converged: Flag


@named
def geometric_median(nu: Threshold = 1e-4, iterations: int = 64) -> Reducer:
    r"""Geometric median (RFA): the point with the least sum of distances to the rows.

    Also known as: RFA, GeoMed, Weiszfeld.

    .. math:: u = \arg\min_z \sum_i w_i \|z - g_i\|, \qquad
        z \leftarrow \sum_i \beta_i g_i / \sum_i \beta_i, \qquad
        \beta_i = \frac{w_i}{\max(\nu r, \|z - g_i\|)}

    by smoothed Weiszfeld iterations. The iterate is B coefficients, and distances come
    from the Gramian. Two differences from the paper, around the row with the least
    distance r within which more than half of the weight lies, a radius that no minority
    can enlarge:

      1. the smoothing is relative to r, so rows of any scale are treated alike;
      2. iterations start at the mean of the half of the rows nearest that row (of the
         halves, where rows tie), since from the mean of all they would first have to
         come back from far-away rows.

    Guarantees: in the convex hull of the rows; the order of the rows is irrelevant;
    shifting all rows shifts the update, scaling them scales it, by any number. A
    minority of weight f cannot take it farther than 2 (n - f) / (n - 2f) times the
    largest distance of an honest row from the honest mean.
    Edge cases: one row, or all equal: that row. No row: zero, not ready.
    More than half of the weight in one place: that row.
    ``weights``: sample counts: a row of weight 2 is two equal rows.

    Args:
      nu: smoothing, as a fraction of r > 0: a number, array or schedule.
      iterations: Weiszfeld iterations; their number is fixed.

    Returns:
      A :class:`Reducer` with ``residual`` and ``converged`` in its state.

    Raises:
      ValueError: a static argument is out of range.

    Cost: one Gramian (two if rows are nearly equal), O(B^2) for each iteration, one
    combination.

    References: Pillutla et al., `Robust Aggregation for Federated Learning
    <https://arxiv.org/abs/1912.13445>`_, 2019.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = geometric_median(), jnp.zeros(2)
      >>> rows = jnp.array([[0., 1.], [1., 0.], [-1., 0.], [0., -1.], [0., 90.]])
      >>> update, state = rule.update(rows, rule.init(params), params)
      >>> print(update.round(3), state.rule_state.converged)
      [0.    0.577] True
    """
    _check.interval("nu", nu, 0, open_low=True)
    _check.count("iterations", iterations)

    def init(params: Tree, dtype: Any) -> GeometricMedianState:
        del params, dtype
        return GeometricMedianState(jnp.zeros((), jnp.float32), jnp.zeros((), bool))

    def weigh(
        products: Gramian, roster: Roster, state: GeometricMedianState
    ) -> tuple[PerRow, GeometricMedianState]:
        del state
        squares = squared_distances(products, roster.present)
        size = roster.weights.shape[0]
        reach = jax.vmap(majority, (0, None))(squares, roster.weights)
        reach = jnp.where(roster.present, reach, jnp.inf)
        least = reach.min()
        together = least == 0  # more than half of the weight is in one place
        # rows tie, since a distance has two ends: all that tie name their near half
        inner = reach <= least * _TIE
        near = jnp.where(inner[:, None], squares <= least * _TIE, False).sum(0)
        radius = root(least)
        radius = jnp.where(jnp.isfinite(radius) & (radius > 0), radius, 1)
        smoothing = _check.value_at(nu, roster.step, products.dtype)
        gramian = products / radius / radius  # rows in units of r

        def pulls(z: Array) -> Array:
            """Of each row on the point that has these coefficients, (B,).

            A row with more than half of it is made the origin: the point may be close
            to it, and that distance must not come out of a difference of others.
            """
            near = jnp.argmax(z)
            side = gramian[near]
            local = gramian - side[:, None] - side[None, :] + side[near]
            origin = jax.nn.one_hot(near, size, dtype=bool)
            local = jnp.where(origin[:, None] | origin[None, :], 0, local)
            local = jnp.where(z[near] > 0.5, local, gramian)
            product = local @ z
            distances = z @ product - 2 * product + local.diagonal()
            length = root(distances)
            return roster.shares / jnp.maximum(length, smoothing)

        def step(_: Array, z: Array) -> Array:
            pull = pulls(z)
            total = pull.sum()
            return pull / positive_or_one(total)

        start = shares_of(roster.weights * near.astype(roster.weights.dtype))
        z = lax.fori_loop(0, iterations, step, start)
        pull = pulls(z)
        gradient = pull - pull.sum() * z
        squared = jnp.where(together, 0, gradient @ (gramian @ gradient))
        residual = root(squared).astype(jnp.float32)
        z = jnp.where(together, start, z)
        return z, GeometricMedianState(residual, residual <= _CONVERGED)

    return reducer(Weighting(weigh, init, reads=Reads.AFFINE, degree=0))
