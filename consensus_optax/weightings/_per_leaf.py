"""Every parameter decides for itself."""

from __future__ import annotations

from consensus_optax._rules.kinds import Reads, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer, rule_of


@named
def per_leaf(weighting: Reducer) -> Reducer:
    r"""A weighting that decides for every parameter from that parameter's rows alone.

    Also known as: layer-wise, per tensor, per layer.

    .. math:: u_\ell = w(J_\ell J_\ell^\top)^\top J_\ell \quad \text{for every leaf }
        \ell

    Any rule that is made of inner products will do: the filters, Krum, the
    multi-objective rules. Folds and columns decide for each coordinate already.

    Guarantees: on every leaf what ``weighting`` gives for that leaf alone; rows with a
    non-finite entry in any leaf are absent from all.
    Edge cases: ``consensus_ready`` where any leaf has an update; that of a leaf which
    agrees on nothing is zero. A weighting that reads no gradient, such as
    :func:`mean`, weighs alike for every leaf: it stays as it is.

    Args:
      weighting: a reducer made of a :class:`Weighting`.

    Returns:
      A :class:`Reducer`; all fields of its rule's state have a leading axis over the
      floating leaves.

    Raises:
      ValueError: ``weighting`` is not made of a weighting.

    Cost: inner products are those of the whole model, kept apart; what is decided on
    them is decided for every leaf, in one vectorized call.

    References: the readers of `Gradient Agreement Filtering
    <https://arxiv.org/abs/2412.18052>`_ ask for it; AdaSum's authors do it.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> rule, params = per_leaf(co.krum(0)), {"a": jnp.zeros(1), "b": jnp.zeros(1)}
      >>> far = jnp.array([[1.], [1.], [9.]])
      >>> rows = {"a": far, "b": far[::-1] + 4}
      >>> update, _ = rule.update(rows, rule.init(params), params)
      >>> float(update["a"][0]), float(update["b"][0])
      (1.0, 5.0)
    """
    rule = rule_of("weighting", weighting)
    if not isinstance(rule, Weighting):
        raise ValueError(
            "`weighting` must be made of a Weighting, which reads inner products; "
            f"got {weighting!r}, made of a {type(rule).__name__}"
        )
    return reducer(rule._replace(per_leaf=rule.reads != Reads.NOTHING))
