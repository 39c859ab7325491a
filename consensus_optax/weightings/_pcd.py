"""One row comes first: it is followed as far as the others still gain by it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import root
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._rules.solvers import (
    cancels,
    cosines,
    nonnegative,
    product,
    ratio,
    solution,
)
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Flag, Gramian, Number, PerRow, Threshold, Tree


class PcdState(NamedTuple):
    """State of :func:`pcd`.

    Attributes:
      squares: (num_rows,) moving sums of the rows' squared norms, weights included.
      mass: (num_rows,) what these weights sum to; 0 for a row not seen yet.
      residual: () float32, how far the last solution is from optimality, without units.
      converged: () bool, whether that is at most 1e-5 (1e-10 in float64).
    """

    squares: PerRow
    mass: PerRow
    residual: Number
    converged: Flag


@named
def pcd(
    num_rows: int,
    tau: Threshold = 0.02,
    decay: Threshold = 0.999,
    index: int = 0,
    regularization: Threshold = 1e-4,
) -> Reducer:
    r"""Priority-constrained descent (PCD): the first row, as long as the others gain.

    Also known as: priority-constrained descent.

    .. math:: d = \arg\min_d \|d - \tilde g_1\|^2 \ \text{ with } \
        \langle \tilde g_j, d\rangle \ge \tau \|\tilde g_j\|^2, \quad
        \tilde g_i = g_i / \sqrt{\hat v_i}, \qquad u = \frac{\|g_1\|}{\|d\|} d

    where :math:`g_1` is the row that has priority and :math:`\hat v_i` the moving
    average of row i's squared norm. :math:`\tau` is what part of its own gain, in a
    step of its own, each other row is to have.

    Differences from the paper:
      1. multipliers are held back by :math:`\epsilon`: a row whose constraint binds
         with the multiplier :math:`\nu_j` of its direction is short of its gain by
         :math:`\epsilon \nu_j` of its length;
      2. constraints that cannot all be met are dropped, as there: here where a mean of
         the other rows' directions, with shares that are not negative, has a square of
         :math:`\epsilon` or less (:math:`\tau = 0` can always be met);
      3. nothing is added to :math:`\hat v`.

    Guarantees: as long as the row that has priority, and that row itself where it meets
    all constraints; scaling all rows by the same number at all steps scales it, and
    scaling another row changes nothing; the order of the other rows is irrelevant if
    the state's goes along.
    Edge cases: the row that has priority is zero or absent, or what is left of it
    cancels: zero, not ready. Zero rows ask for nothing. An absent row asks for nothing
    and its average stays.
    Derivatives of the update take its weights as constants.
    ``weights``: which rows are there.

    Args:
      num_rows: B, since the state holds one average a row.
      tau: :math:`\tau` in [0, 1]: a number, array or schedule.
      decay: of the averages, in [0, 1): a number, array or schedule.
      index: which row has priority.
      regularization: :math:`\epsilon` > 0: a number, array or schedule.

    Returns:
      A :class:`Reducer` with ``residual`` and ``converged`` in its state.

    Raises:
      ValueError: an argument is out of range; when traced, a stack of another number of
        rows.

    Cost: one Gramian, some tens of products [B] x [B, B], one combination.

    References: Varam, AlHajri, `Not All Objectives Are Born Equal: Priority-Constrained
    Descent for Hierarchical Multi-Objective Optimization
    <https://arxiv.org/abs/2606.29521>`_, 2026, and the authors' code.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = pcd(num_rows=2, tau=0.0), jnp.zeros(2)
      >>> rows = jnp.array([[3., 4.], [-1., 0.]])  # the second must not be opposed
      >>> update, state = rule.update(rows, rule.init(params), params)
      >>> print([round(float(x), 2) for x in update], state.rule_state.converged)
      [0.0, 5.0] True
    """
    _check.count("num_rows", num_rows)
    _check.interval("tau", tau, 0, 1)
    _check.interval("decay", decay, 0, 1, open_high=True)
    _check.count("index", index, minimum=0)
    _check.row_index("index", index, num_rows)
    _check.interval("regularization", regularization, 0, open_low=True)

    def init(params: Tree, dtype: Any) -> PcdState:
        del params
        zeros = jnp.zeros(num_rows, dtype)
        unsolved = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.bool_)
        return PcdState(zeros, zeros, *unsolved)

    def weigh(
        gramian: Gramian, roster: Roster, state: PcdState
    ) -> tuple[PerRow, PcdState]:
        _check.rows_expected(num_rows, roster.weights.shape[0])
        value = lambda x: _check.value_at(x, roster.step, gramian.dtype)
        beta, epsilon = value(decay), value(regularization)
        average = lambda old, new: jnp.where(
            roster.present, beta * old + (1 - beta) * new, old
        )
        squares = average(state.squares, gramian.diagonal())
        mass = average(state.mass, jnp.ones_like(squares))

        directions, lengths = cosines(gramian)
        usual = root(ratio(squares, mass))
        sizes = ratio(lengths, usual)  # of the normalized rows
        others = (lengths > 0) & (jnp.arange(num_rows) != index)
        asked = jnp.where(others, value(tau) * sizes, 0)
        pairs = others[:, None] & others[None, :]
        between = jnp.where(pairs, directions, jnp.eye(num_rows, dtype=gramian.dtype))
        # What each direction has more of the first row than it asks for.
        spare = jnp.where(others, directions[index] * sizes[index] - asked, 0)
        unit = sizes[index] + asked.max()
        # The diagonal of `between` is 1, with what is added 1 + epsilon.
        held = between + epsilon * jnp.eye(num_rows, dtype=gramian.dtype)
        held, offset = held / (1 + epsilon), ratio(spare, unit) / (1 + epsilon)
        # The second problem: nothing comes first, and all ask for as much.
        alone = jnp.where(asked > 0, -1 / (1 + epsilon), 0)
        problems = jnp.stack([offset, alone])
        found = nonnegative(held, problems)
        slopes = product(found, held) + problems
        worst = jnp.max(jnp.abs(jnp.minimum(found, slopes))[0])
        found, sums = found[0], found[1].sum()
        solved = solution(found, worst).state
        # One over that sum is the least square of any mean of the others' directions,
        # with what is added for each: epsilon at the most where they leave no way.
        missed = 2 * epsilon * sums >= 1
        multipliers = jnp.where(missed | ~others, 0, found * unit)

        first = jnp.arange(num_rows) == index
        weights = ratio(jnp.where(first, sizes, multipliers), lengths)
        length = root(product(weights, product(gramian, weights)))
        weights = weights * ratio(lengths[index], length)
        nothing = cancels(gramian, weights) | (lengths[index] == 0)
        return jnp.where(nothing, 0, weights), PcdState(squares, mass, *solved)

    return reducer(Weighting(weigh, init))
