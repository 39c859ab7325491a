"""Weights in a ball around those of the mean: an open question of AdaCons, as rules."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

import consensus_optax as co


def near_the_mean(radius: float) -> Any:
    r"""AdaCons' weights, brought into a ball around those of the mean.

    .. math:: w = u + \min(1, r \|u\| / \|a - u\|) (a - u)

    with u the shares of the mean and a the weights of AdaCons of the rows' mean length.
    0 is the mean, infinity AdaCons.
    """
    ours = co.subspace_weighting(length="mean_norm").rule

    def weigh(gramian: Any, roster: Any, state: Any) -> tuple[Any, Any]:
        weights, state = ours.weigh(gramian, roster, state)
        gap = weights - roster.shares
        bound = radius * jnp.linalg.norm(roster.shares)
        length = jnp.linalg.norm(gap)
        factor = jnp.where(length > bound, bound / jnp.where(length > 0, length, 1), 1)
        return roster.shares + factor * gap, state

    return co.reducer(co.Weighting(weigh, ours.init))


def trust_region(radius: float) -> Any:
    r"""The weights of a ball around those of the mean that promise most.

    .. math:: \max_w \langle \bar g, \sum_i w_i g_i \rangle, \quad
        \sum_i w_i = 1, \ \|w - u\| \le r \|u\|

    The loss is linear here, so the answer is u and r‖u‖ of the direction in which rows'
    inner products with the mean differ from their average.
    """

    def weigh(gramian: Any, roster: Any, state: Any) -> tuple[Any, Any]:
        promised = gramian @ roster.shares
        here = roster.shares > 0
        average = promised.mean(where=here)
        gap = jnp.where(here, promised - average, 0)
        length = jnp.linalg.norm(gap)
        gap = gap / jnp.where(length > 0, length, 1)
        bound = radius * jnp.linalg.norm(roster.shares)
        return roster.shares + bound * gap, state

    return co.reducer(co.Weighting(weigh))
