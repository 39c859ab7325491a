"""Any rule on mixed rows."""

from __future__ import annotations

from consensus_optax._rules.kinds import After, Mixing, Scaling
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer, rule_of


@named
def after(mixing: Mixing | Scaling, rule: Reducer) -> Reducer:
    """Mixes the rows first and gives the mixed rows to a rule.

    Guarantees: equals ``rule`` on the stack of mixed rows. A weighting never forms
    them: its Gramian is M G Mᵀ, its weights go back by Mᵀ.
    Edge cases: those of both.
    ``weights``: what they mean to the mixing, which gives the mixed rows theirs.

    Args:
      mixing: a linear map of the rows, such as ``co.bucketing(2, key)``.
      rule: any reducer.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: an argument is of the wrong kind.

    Cost: that of the rule; for folds and columns each leaf is multiplied out, unless
    rows are only scaled, as by :func:`adaptive_clipping`.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> halves = co.Mixing(lambda _, rows: (
      ...     jnp.array([[.5, .5, 0, 0], [0, 0, .5, .5]]), jnp.ones(2)), "nothing")
      >>> rule = co.after(halves, co.sign_consensus())
      >>> rows, params = jnp.array([[3.], [-1.], [4.], [4.]]), jnp.zeros(1)
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [1.0]
    """
    return reducer(After(mixing, rule_of("rule", rule)))
