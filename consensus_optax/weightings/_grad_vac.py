"""Rows brought up to the cosines that pairs of them usually have."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._rows.varying import varying_like
from consensus_optax._rules.arithmetic import root
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import cancels, product, ratio
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, Gramian, PerRow, Threshold, Tree
from consensus_optax.weightings._preference import relative_weights
from consensus_optax.weightings._surgery import Rotation, random_orders, unchanged

_MOST = 0.9999  # of a target: nearer to 1 an angle is rounding, and what it asks for
_GONE = 64  # units in the last place of what is left of a row's squared length


class GradVacState(NamedTuple):
    """The cosines that rows are brought up to.

    Attributes:
      target: (num_rows, num_rows) moving average of the cosine of row i, as changed so
        far in its step, with row j.
    """

    target: Gramian


@named
def grad_vac(key: Array, num_rows: int, decay: Threshold = 0.99) -> Reducer:
    r"""GradVac: brings each row up to its usual cosine with the others; the sum.

    Also known as: gradient vaccine.

    .. math:: h \leftarrow g_i; \quad \text{for } j \ne i \text{ in random order:} \quad
        c = \cos(h, g_j); \quad h \leftarrow h + \|h\|
        \frac{\phi_{ij} \sqrt{1 - c^2} - c \sqrt{1 - \phi_{ij}^2}}
             {\|g_j\| \sqrt{1 - \phi_{ij}^2}}\, g_j
        \ \text{ if } c < \phi_{ij}; \quad
        \phi_{ij} \leftarrow \beta \phi_{ij} + (1 - \beta)\, c; \qquad u = \sum_i h_i

    After its change h has the cosine :math:`\phi_{ij}` with :math:`g_j`, a target that
    starts at 0, so that the first step is that of :func:`pcgrad`; with targets above 0
    rows that do not oppose each other are changed as well. Everything is read from the
    Gramian: h is a vector of B coefficients. Rows must keep their places from step to
    step: tasks or workers rather than examples.

    One difference from the paper: a target beyond 0.9999 (or -0.9999) counts as that,
    since what is added grows without bound as rows that were always parallel turn.

    Guarantees: at ``decay=1`` it is :func:`pcgrad`; scaling all rows scales the update;
    the order of the rows is irrelevant in distribution, if the state's goes along. The
    update may oppose rows.
    Edge cases: one row: that row. All equal, at every step: N times that row. A zero
    row changes nothing and keeps its targets, an absent one too. What cancels to 7e-4
    of the rows (1e-4 in float64), as two opposite rows do at first: zero, not ready.
    ``weights``: sample counts of the sum, relative to the mean weight; a row takes
    part in all changes whatever its weight, and once.

    Args:
      key: ``jax.random.key`` or a legacy key. The orders of a step are drawn with
        ``jax.random.fold_in(key, step)``, so no key is in the state.
      num_rows: B, since the state holds one target a pair.
      decay: :math:`\beta` in [0, 1] of the targets, 1 less the paper's, which is 0.01:
        a number, array or schedule.

    Returns:
      A :class:`Reducer` with ``target`` in its state.

    Raises:
      ValueError: an argument is out of range; when traced, a stack of another number of
        rows.

    Cost: one Gramian, B sweeps over [B, B] arrays, one combination.

    References: Wang et al., `Gradient Vaccine: Investigating and Improving Multi-task
    Optimization in Massively Multilingual Models <https://arxiv.org/abs/2010.05874>`_,
    2020.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> rule, params = grad_vac(jax.random.key(0), num_rows=2), jnp.zeros(2)
      >>> rows, state = jnp.array([[1., 0.], [-1., 1.]]), rule.init(params)
      >>> update, state = rule.update(rows, state, params)
      >>> print(update, state.rule_state.target[0].round(3))
      [0.5 1.5] [ 0.    -0.007]
    """
    _check.key("key", key)
    _check.count("num_rows", num_rows)
    _check.interval("decay", decay, 0, 1)

    def init(params: Tree, dtype: Any) -> GradVacState:
        del params
        return GradVacState(jnp.zeros((num_rows, num_rows), dtype))

    def weigh(
        gramian: Gramian, roster: Roster, state: GradVacState
    ) -> tuple[PerRow, GradVacState]:
        _check.rows_expected(num_rows, roster.weights.shape[0])
        indices = jnp.arange(num_rows)
        order = random_orders(key, roster, indices)
        squares = gramian.diagonal()
        lengths = root(squares)
        least = _GONE * jnp.finfo(gramian.dtype).eps * squares
        beta = _check.value_at(decay, roster.step, gramian.dtype)

        def meet(k: Array, carry: tuple[Rotation, Array]) -> tuple[Rotation, Array]:
            rotation, target = carry
            others = order[:, k]  # (B,)
            left = (rotation.weights * rotation.products).sum(1)  # squared length of h
            known = (others != indices) & (left > least) & (lengths[others] > 0)
            length = root(jnp.where(known, left, 0))
            inner = rotation.products[indices, others]
            cosine = jnp.clip(ratio(ratio(inner, length), lengths[others]), -1, 1)
            usual = target[indices, others]
            goal = jnp.clip(usual, -_MOST, _MOST)
            sine = root(1 - goal**2)
            turn = goal * root(1 - cosine**2) - cosine * sine
            added = ratio(length, lengths[others]) * turn / sine
            added = jnp.where(known & (cosine < goal), added, 0)
            usual = jnp.where(known, beta * usual + (1 - beta) * cosine, usual)
            target = target.at[indices, others].set(usual)
            return rotation.plus(added, others, gramian), target

        start = unchanged(indices, gramian), state.target
        start = varying_like(start, gramian, roster.weights)
        end, target = lax.fori_loop(0, num_rows, meet, start)
        weights = product(relative_weights(roster), end.weights)
        weights = jnp.where(cancels(gramian, weights), 0, weights)
        return weights, GradVacState(target)

    return reducer(Weighting(weigh, init, degree=0))
