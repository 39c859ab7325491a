"""Rows that pull the way of a target: a validation gradient, or the last update."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import positive_or_one, root
from consensus_optax._rules.distances import num_present
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import PerWeight, Threshold, Toward, Tree
from consensus_optax.weightings._cosine_filter import CosineFilterState, gate


@named
def select_toward(
    target: str = "given",
    *,
    min_cosine: Threshold = 0.0,
    temperature: Threshold | None = None,
    top_k: int | None = None,
    by: str = "cosine",
) -> Reducer:
    r"""The mean of the rows that agree with an update-shaped array.

    Also known as: online data selection, gradient matching, GREATS, LESS.

    .. math:: s_i = \frac{\langle g_i, t \rangle}{\|g_i\| \|t\|}, \qquad
        u = \sum_{i \in A} w_i g_i \Big/ \sum_{i \in A} w_i

    with :math:`A = \{i : s_i \ge \text{min\_cosine}\}`, and of these the ``top_k``
    with the largest s. With t the gradient of a validation loss and
    ``by="product"``, s is how much row i alone would lower that loss, to first order;
    ``diagnostics.under_adam`` makes of t what that is for a step of Adam. Without a
    Gramian: one product with t for each row.

    Guarantees: in the convex hull of the rows; scaling all rows, or t, scales the
    update, or nothing, while squares of their lengths are float32 numbers; the order of
    the rows is irrelevant (but for equal s at the last of ``top_k`` places: the first
    rows).
    Edge cases: a target of zero, as before the first step with ``"previous"``, is
    nothing to agree with: all rows pass, whatever ``top_k``. A zero row has cosine 0.
    Nobody passes: zero, not ready.

    ``weights``: sample counts: a row of weight 2 is two equal rows; in ``top_k`` it
    takes one place.

    Args:
      target: ``"given"``: the ``target`` of ``update``, a tree like the parameters;
        ``"previous"``: the last update.
      min_cosine: least cosine accepted, in [-1, 1]: a number, array or schedule.
      temperature: None for a hard threshold; else every row counts by
        sigmoid((s - min_cosine) / temperature).
      top_k: how many rows at most, None for all.
      by: what ``top_k`` goes by: ``"cosine"``, or ``"product"`` for
        :math:`\langle g_i, t \rangle`.

    Returns:
      A :class:`Reducer` with ``accepted``, ``cosine_mean``, ``cosine_min`` in its
      state. As a selector in :func:`among` it chooses rows for any other rule.

    Raises:
      ValueError: a static argument is out of range; when traced, there is no target, or
        it is not like the parameters.

    Cost: norms, one matrix-vector product with the rows' factors, one combination;
    ``"previous"`` keeps one array like the parameters.

    References: Wang et al., `GREATS <https://openreview.net/forum?id=232VcN8tSx>`_,
    2024; Xia et al., `LESS <https://arxiv.org/abs/2402.04333>`_, 2024. What GREATS
    adds, products among the chosen rows, is left out.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = select_toward(min_cosine=0.5), jnp.zeros(2)
      >>> rows = jnp.array([[1., 0.], [3., 1.], [-9., 0.]])
      >>> update, state = rule.update(
      ...     rows, rule.init(params), params, target=jnp.array([1., 0.]))
      >>> print(update, int(state.rule_state.accepted))
      [2.  0.5] 2
    """
    _check.one_of("target", target, ("given", "previous"))
    _check.interval("min_cosine", min_cosine, -1, 1)
    if temperature is not None:
        _check.interval("temperature", temperature, 0, open_low=True)
    if top_k is not None:
        _check.count("top_k", top_k)
    _check.one_of("by", by, ("cosine", "product"))
    remembers = target == "previous"

    def init(params: Tree, dtype: Any) -> CosineFilterState:
        del params, dtype
        return CosineFilterState(*(jnp.zeros((), jnp.float32) for _ in range(3)))

    def weigh(products: Toward, roster: Roster, state: Any) -> tuple[PerWeight, Any]:
        del state
        norms, inner = root(products[0]), products[1, :-1]
        scale = norms[:-1] * norms[-1]
        cosine = inner / positive_or_one(scale)
        value = _check.value_at(min_cosine, roster.step, cosine.dtype)
        passes = gate(cosine, 1 - value, temperature, roster.step)
        passes = jnp.where(roster.present, passes, 0)
        if top_k is not None:
            score = jnp.where(
                passes > 0, inner if by == "product" else cosine, -jnp.inf
            )
            ranks = jnp.argsort(jnp.argsort(-score, stable=True))
            passes = jnp.where(ranks < top_k, passes, 0)
        there = roster.present & (norms[-1] > 0)
        passes = jnp.where(norms[-1] > 0, passes, roster.present.astype(cosine.dtype))
        mass = passes * roster.weights
        count = jnp.maximum(num_present(there), 1).astype(cosine.dtype)
        numbers = (
            passes.sum(),
            jnp.where(there, cosine, 0).sum() / count,
            jnp.where(there.any(), jnp.where(there, cosine, 2).min(), 0),
        )
        weights = mass / positive_or_one(mass.sum())
        weights = jnp.append(weights, 0) if remembers else weights
        return weights, CosineFilterState(*(x.astype(jnp.float32) for x in numbers))

    return reducer(Weighting(weigh, init, reads=Reads.TOWARD, remembers=remembers))
