"""Majority vote of signs."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rows.statistics import WEIGHTED_MAGNITUDE, WEIGHTED_SIGN
from consensus_optax._rules.arithmetic import SLACK, positive_or_one
from consensus_optax._rules.kinds import Fold, Roster
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array


@named
def sign_vote(magnitude: str = "unit") -> Reducer:
    r"""Majority vote (signSGD): every coordinate moves where most rows point.

    Also known as: signSGD with majority vote, majority vote, signSGD.

    .. math:: v_p = \sum_i w_i\, \mathrm{sign}(g_{ip}) \Big/ \sum_i w_i, \qquad
        u_p = \mathrm{sign}(v_p)\, m_p

    with m = 1 (``"unit"``, the published method), \|v\| (``"vote"``: the update is the
    vote itself, in [-1, 1]) or the mean of \|g_i\| (``"mean"``). Ahead of it,
    :func:`row_momentum` gives every worker the momentum of the published method.

    Guarantees:
      - the order of the rows is irrelevant;
      - ``"unit"`` and ``"vote"``: unchanged if any row is scaled by a positive number,
        so a row has one vote however large it is; entries are at most 1;
      - ``"mean"``: scaling all rows scales the update.

    Edge cases: a tie (to a millionth of the weight), or only zeros: 0. A zero entry
    abstains. With ``"unit"`` and ``"vote"`` the update's size says nothing: a learning
    rate for SGD does not carry over.

    ``weights``: votes.

    Args:
      magnitude: ``"unit"``, ``"vote"`` or ``"mean"``.

    Returns:
      A :class:`Reducer`; field ``consensus_ratio`` of its state is the share of
      coordinates without a tie.

    Raises:
      ValueError: ``magnitude`` is none of the three.

    Cost: one pass over the rows, one array like the parameters carried (two with
    ``"mean"``).

    References: Bernstein et al., `signSGD with majority vote is communication
    efficient and fault tolerant <https://arxiv.org/abs/1810.05291>`_, 2018 (unit).

    Examples:
      >>> import jax.numpy as jnp
      >>> rows, params = jnp.array([[9., 1.], [-1., 2.], [-2., 0.]]), jnp.zeros(2)
      >>> for magnitude in ("unit", "mean"):
      ...     rule = sign_vote(magnitude)
      ...     print(rule.update(rows, rule.init(params), params)[0])
      [-1.  1.]
      [-4.  1.]
    """
    _check.one_of("magnitude", magnitude, ("unit", "vote", "mean"))
    statistics = (WEIGHTED_SIGN, WEIGHTED_MAGNITUDE)[: 2 if magnitude == "mean" else 1]

    def resolve(merged: list[list[Array]], roster: Roster) -> list[Array]:
        total = roster.weights.sum()
        total = positive_or_one(total)
        # Votes of 0.1, 0.2 and 0.3 against 0.6 are a tie, in whatever order they round.
        won = lambda vote: jnp.where(jnp.abs(vote) > SLACK * total, vote, 0)
        votes = [won(vote) for vote in merged[0]]
        if magnitude == "vote":
            return [vote / total for vote in votes]
        signs = [jnp.sign(vote) for vote in votes]
        if magnitude == "unit":
            return [sign.astype(jnp.int8) for sign in signs]  # what travels on a mesh
        sizes = [size / total for size in merged[1]]
        return [sign * size for sign, size in zip(signs, sizes, strict=True)]

    return reducer(Fold(statistics, resolve))
