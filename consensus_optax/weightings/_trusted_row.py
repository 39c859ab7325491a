"""One row is trusted: the others count as far as they agree with it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import positive_or_one, root
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Gramian, PerRow


@named
def trusted_row(index: int = 0) -> Reducer:
    r"""FLTrust: rows averaged by their cosine with a trusted one, at its length.

    Also known as: FLTrust.

    .. math:: t_i = \max(0, \cos(g_i, g_0)), \qquad
        u = \frac{1}{\sum_i t_i} \sum_i t_i \frac{\|g_0\|}{\|g_i\|} g_i

    over the rows i other than the trusted one, :math:`g_0`, say the gradient of a few
    examples known to be clean. It judges and is not averaged in, as in the paper.

    Guarantees: no longer than the trusted row; a positive inner product with it, unless
    zero; the order of the other rows is irrelevant, and so are their lengths; any
    number of them may be arbitrary. Scaling all rows by a positive number scales the
    update.
    Edge cases: no row agrees, the trusted row is zero or absent, or there is no other:
    zero, not ready. A zero row has no direction: left out.
    ``weights``: sample counts, that multiply t. Of the trusted row: only whether it is
    there.

    Args:
      index: which row is trusted.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: ``index`` is no count; when traced, there is no such row.

    Cost: one Gramian, one combination.

    References: Cao et al., `FLTrust: Byzantine-robust Federated Learning via Trust
    Bootstrapping <https://arxiv.org/abs/2012.13995>`_, 2020.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = trusted_row(), jnp.zeros(2)
      >>> rows = jnp.array([[2., 0.], [5., 0.], [0., 3.], [-90., 0.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [2.0, 0.0]
    """
    _check.count("index", index, minimum=0)

    def weigh(gramian: Gramian, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        size = roster.weights.shape[0]
        _check.row_index("index", index, size)
        norms = root(gramian.diagonal())
        trusted = norms[index]
        known = (norms > 0) & (trusted > 0) & (jnp.arange(size) != index)
        lengths = jnp.where(known, norms, 1)
        cosines = gramian[index] / lengths / positive_or_one(trusted)
        trust = jnp.where(known, jnp.maximum(cosines, 0), 0) * roster.weights
        total = trust.sum()
        shares = trust / positive_or_one(total)
        return shares * trusted / lengths, state

    return reducer(Weighting(weigh, degree=0))
