"""Clients of large loss weigh more."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import PerRow, Threshold
from consensus_optax.weightings._keep_smallest_losses import row_values


@named
def q_fedavg(q: Threshold, lipschitz: Threshold) -> Reducer:
    r"""q-FedAvg: rows weigh by a power of their losses, the step shrinks with both.

    Also known as: q-FFL, fair federated averaging.

    .. math:: u = \frac{\sum_i w_i L f_i^q g_i}{\sum_i w_i h_i}, \qquad
        h_i = q f_i^{q - 1} L^2 \|g_i\|^2 + L f_i^q

    For rows that are what local training moved, with the opposite sign, and
    ``optax.sgd(1.0)``. It descends :math:`\sum_i w_i f_i^{q + 1} / (q + 1)`: larger q
    evens out the losses of the clients. The losses come as ``update(rows, state,
    params, values=values)``, which ``training.federated_round`` hands over.

    Guarantees: q = 0 is the weighted mean; the order of the rows is irrelevant; no
    longer than the longest row.
    Edge cases: a row whose loss is negative or not finite is left out; a loss of 0
    counts as 1e-10, as in the authors' code.

    ``weights``: the clients' counts, or 1.

    Args:
      q: >= 0: a number, array or schedule; 0.1 to 5 in the paper.
      lipschitz: L > 0, the inverse of the clients' learning rate.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: an argument is out of range; when traced, ``values`` is missing or not
        (B,).

    Cost: norms and one combination.

    References: Li et al., `Fair Resource Allocation in Federated Learning
    <https://arxiv.org/abs/1905.10497>`_, 2020, algorithm 2. There clients are drawn by
    count and weigh alike; ``weights`` serve where they are drawn uniformly.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = q_fedavg(1.0, 2.0), jnp.zeros(1)
      >>> rows, values = jnp.array([[1.], [0.]]), jnp.array([3., 1.])
      >>> update, _ = rule.update(rows, rule.init(params), params, values=values)
      >>> update.tolist()  # 2 * 3 * 1 / (4 + 2 * 3 + 2 * 1)
      [0.5]
    """
    _check.interval("q", q, 0)
    _check.interval("lipschitz", lipschitz, 0, open_low=True)

    def weigh(squares: PerRow, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        losses = row_values(roster)
        dtype = losses.dtype
        kept = roster.present & jnp.isfinite(losses) & (losses >= 0)
        losses = jnp.maximum(jnp.where(kept, losses, 1), 1e-10)
        power = _check.value_at(q, roster.step, dtype)
        slope = _check.value_at(lipschitz, roster.step, dtype)
        # relative to the largest: any factor of the powers cancels
        relative = losses / jnp.where(kept, losses, 0).max(initial=1e-10)
        mass = jnp.where(kept, roster.weights * relative**power, 0)
        bend = 1 + power * slope * squares / losses
        return mass / positive_or_one((mass * bend).sum()), state

    return reducer(Weighting(weigh, reads=Reads.NORMS))
