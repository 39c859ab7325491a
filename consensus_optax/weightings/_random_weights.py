"""Coefficients that are drawn anew at every step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.distances import shares_of
from consensus_optax._rules.kinds import Reads, Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, PerRow


@named
def random_weights(key: Array) -> Reducer:
    r"""Random gradient weighting (RGW): a random convex combination at every step.

    Also known as: RGW, RLW, random loss weighting, random gradient weighting.

    .. math:: u = \frac{\sum_i w_i e^{z_i} g_i}{\sum_i w_i e^{z_i}}, \qquad
        z_i \sim \mathcal{N}(0, 1)

    A baseline: a rule for tasks should be better than weights at random, which help
    more often than not by being stochastic.

    Guarantees: in the convex hull of the rows; with equal ``weights`` the mean of the
    rows in expectation; the order of the rows is irrelevant in distribution; scaling
    all rows scales it. The same key and step give the same weights.
    Edge cases: an absent row changes no draw of the others but by its place. One row:
    that row. No row: zero, not ready.
    ``weights``: they multiply what is drawn: a row of weight 2 counts twice.

    Args:
      key: ``jax.random.key`` or a legacy key; step t draws with ``fold_in(key, t)``, so
        no key is in the state.

    Returns:
      A :class:`Reducer`.

    Cost: one combination.

    References: Lin et al., `Reasonable Effectiveness of Random Weighting: A Litmus Test
    for Multi-Task Learning <https://arxiv.org/abs/2111.10603>`_, 2021 (Algorithm 2).

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> rule, params = random_weights(jax.random.key(0)), jnp.zeros(2)
      >>> rows, state = jnp.eye(2), rule.init(params)
      >>> update, state = rule.update(rows, state, params)
      >>> print([round(float(x), 2) for x in update])
      [0.66, 0.34]
    """
    _check.key("key", key)

    def weigh(nothing: None, roster: Roster, state: Any) -> tuple[PerRow, Any]:
        del nothing
        step_key = jax.random.fold_in(key, roster.step)
        places = jnp.cumsum(roster.present) - 1  # an absent row changes no draw
        draw = lambda i: jax.random.normal(
            jax.random.fold_in(step_key, i), (), jnp.float32
        )
        drawn = jax.vmap(draw)(places).astype(roster.weights.dtype)
        largest = jnp.max(jnp.where(roster.present, drawn, -jnp.inf))
        odds = jnp.where(roster.present, jnp.exp(drawn - largest), 0)
        return shares_of(roster.weights * odds), state

    return reducer(Weighting(weigh, reads=Reads.NOTHING))
