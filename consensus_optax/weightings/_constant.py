"""Coefficients that are given."""

from __future__ import annotations

from typing import Any

from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import PerRow
from consensus_optax.weightings import _preference
from consensus_optax.weightings._preference import Preference


@named
def constant(coefficients: Preference) -> Reducer:
    r"""Linear scalarization: rows summed with coefficients that are given.

    Also known as: linear scalarization, loss weights, static weights.

    .. math:: u = \sum_i \lambda_i g_i

    What weights in front of losses do, for rows that keep their places: tasks, workers
    or clients. The coefficients need not sum to 1; ones give the plain sum.

    Guarantees: linear in the rows.
    Edge cases: an absent row is left out and the others' coefficients stay. No row, or
    coefficients that are 0 for all that are there: zero, not ready.
    ``weights``: sample counts: a row counts as coefficient times weight over the mean
    weight of the rows present.

    Args:
      coefficients: :math:`\lambda`, (B,) numbers >= 0, one a row.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: ``coefficients`` is no such vector; when traced, it is not (B,).

    Cost: one combination.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = constant([1.0, 0.5]), jnp.zeros(2)
      >>> rows = jnp.array([[1., 2.], [4., 2.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [3.0, 3.0]
    """
    _preference.check(coefficients, "coefficients")

    def weigh(nothing: None, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        del nothing
        given = _preference.of_rows(coefficients, roster, "coefficients")
        return given * _preference.relative_weights(roster), state

    return reducer(Weighting(weigh, reads=Reads.NOTHING))
