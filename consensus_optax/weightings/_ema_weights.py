"""Momentum of another rule's weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer, rule_of
from consensus_optax._typing import Array, PerWeight, Threshold, Tree


class EmaWeightsState(NamedTuple):
    """State of averaged weights; a leading axis over leaves if the rule is by leaf.

    Attributes:
      average: (num_rows,) moving average of the rule's weights.
      seen: (num_rows,) bool, which rows have had a weight yet.
      rule_state: the rule's own state.
    """

    average: PerWeight
    seen: Array
    rule_state: Any


@named
def ema_weights(rule: Reducer, num_rows: int, decay: Threshold = 0.9) -> Reducer:
    r"""CR-MOGM: any weighting with an exponential moving average of its weights.

    Also known as: CR-MOGM.

    .. math:: \lambda_t = \beta \lambda_{t-1} + (1 - \beta) \hat\lambda_t, \qquad
        u_t = J_t^T \lambda_t

    where :math:`\hat\lambda_t` are the rule's weights, and :math:`\lambda` of a row's
    first step is :math:`\hat\lambda`. Rows must keep their places from step to step:
    tasks, workers, or clients rather than examples. The paper lets the decay rise to 1
    as the learning rate falls: give a schedule.

    Guarantees: the rule itself at ``decay=0``; averaged weights are in every convex set
    that the rule's weights are always in, if the same rows are present at all steps.
    What a rule guarantees of one stack (no row opposed) its average does not.
    Edge cases: an absent row has weight 0 and keeps its average. Where the rule agrees
    on nothing, so does this, and the average stays.
    ``weights``: as for the rule.

    Args:
      rule: a reducer made of a weighting, such as ``co.mgda()``.
      num_rows: B, since the state holds one average a row.
      decay: :math:`\beta` in [0, 1]: a number, array or schedule.

    Returns:
      A :class:`Reducer` with ``average`` in its state.

    Raises:
      ValueError: an argument is of the wrong kind or out of range; when traced, a stack
        of another number of rows.

    Cost: that of the rule.

    References: Zhou et al., `On the Convergence of Stochastic Multi-Objective Gradient
    Manipulation and Beyond <https://openreview.net/forum?id=ScwfQ7hdwyP>`_, 2022.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> rule, params = ema_weights(co.mgda(), num_rows=2), jnp.zeros(2)
      >>> state = rule.init(params)
      >>> for rows in ([[2., 0.], [0., 1.]], [[1., 0.], [0., 1.]]):
      ...     update, state = rule.update(jnp.array(rows), state, params)
      >>> [round(float(x), 3) for x in state.rule_state.average]
      [0.23, 0.77]
    """
    inner = rule_of("rule", rule)
    if not isinstance(inner, Weighting):
        raise ValueError(
            f"`rule` must be made of a Weighting, whose weights can be averaged; got a "
            f"{type(inner).__name__}"
        )
    _check.count("num_rows", num_rows)
    _check.interval("decay", decay, 0, 1)
    length = num_rows + inner.remembers  # the previous update comes last

    def init(params: Tree, dtype: Any) -> EmaWeightsState:
        zeros = jnp.zeros(length, dtype)
        return EmaWeightsState(zeros, zeros > 0, inner.init(params, dtype))

    def weigh(
        products: Any, roster: Roster, state: EmaWeightsState
    ) -> tuple[PerWeight, EmaWeightsState]:
        _check.rows_expected(num_rows, roster.weights.shape[0])
        weights, inner_state = inner.weigh(products, roster, state.rule_state)
        present = inner.present(roster)
        weights = jnp.where(present, weights, 0)
        sound = jnp.all(jnp.isfinite(weights)) & jnp.any(weights != 0)
        beta = _check.value_at(decay, roster.step, weights.dtype)
        mixed = beta * state.average + (1 - beta) * weights
        mixed = jnp.where(state.seen, mixed, weights)
        counts = sound & present
        average = jnp.where(counts, mixed, state.average)
        new_state = EmaWeightsState(average, state.seen | counts, inner_state)
        return jnp.where(counts, average, 0), new_state

    # Averages over steps are of weights as they are, not of each step's own scale; and
    # of none of them is anything known before all rows have been seen.
    degree = None if inner.degree else inner.degree
    averaged = inner._replace(weigh=weigh, init=init, degree=degree, apart=None)
    return reducer(averaged)
