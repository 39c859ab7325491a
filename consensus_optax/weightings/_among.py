"""Any rule on the rows that a weighting selects."""

from __future__ import annotations

from typing import Any

from consensus_optax._rules.kinds import Among
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer, rule_of


@named
def among(selector: Reducer, rule: Reducer) -> Reducer:
    """Lets one rule choose the rows and another reduce those.

    The selector's weights decide only who takes part (weight > 0); the survivors go
    with their own weights to the second rule.

    Guarantees: equals ``rule`` on the stack of the selected rows alone.
    Edge cases: nobody selected: zero, not ready.
    ``weights``: what they mean to the selector, and then to the rule.

    Args:
      selector: a reducer that is a weighting of the whole model, such as
        :func:`cosine_filter`.
      rule: any reducer.

    Returns:
      A :class:`Reducer`, with both states.

    Raises:
      ValueError: the selector is not a weighting of the whole model.

    Cost: that of both; the rows are not computed again.

    Examples:
      >>> import jax.numpy as jnp, consensus_optax as co
      >>> rule = co.among(co.cosine_filter(0.5), co.sign_consensus())
      >>> rows = jnp.array([[1., 2.], [-1., 0.], [3., 1.]])
      >>> params = jnp.zeros(2)
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [1.0, 1.0]
    """
    chosen: Any = rule_of("selector", selector)  # a Weighting, as `reducer` checks
    return reducer(Among(chosen, rule_of("rule", rule)))
