"""Gradient sign dropout: one sign per coordinate, drawn by the rows' weight of it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rows.statistics import NEGATIVE_SUM, POSITIVE_SUM
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.kinds import Fold, Roster
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, Threshold


@named
def graddrop(leak: Threshold, key: Array) -> Reducer:
    r"""GradDrop: keep the positive or the negative entries of a coordinate, by chance.

    Also known as: GradDrop, gradient sign dropout.

    .. math:: P_p = \frac12 \Big(1 + \frac{\sum_i g_{ip}}{\sum_i |g_{ip}|}\Big), \qquad
        u_p = \ell \sum_i g_{ip} + (1 - \ell)
        \begin{cases} \sum_{g_{ip} > 0} g_{ip} & U_p < P_p \\
                      \sum_{g_{ip} < 0} g_{ip} & \text{else} \end{cases}

    with :math:`U_p` uniform in [0, 1) and leak :math:`\ell`. A sum over rows, not a
    mean, as published.

    Guarantees: the order of the rows is irrelevant; scaling all rows scales the
    update; where all rows agree in sign, u is their sum; one row passes unchanged; the
    expectation is the plain sum, whatever the leak; the same key and step give the same
    update, on every backend and however rows are computed.
    Edge cases: all entries zero: 0.

    ``weights``: relative: every sum above is N times the weighted mean, N the number
    of rows present.

    Args:
      leak: share of the plain sum that is let through, in [0, 1]; one for all rows. A
        number, array or schedule.
      key: random key; step t draws with ``fold_in(key, t)``, and every leaf by itself.

    Returns:
      A :class:`Reducer`.

    Raises:
      ValueError: ``leak`` is out of range.

    Cost: one pass over the rows, two arrays like the parameters carried, one drawn.

    References: Chen et al., `Just pick a sign: optimizing deep multitask models with
    gradient sign dropout <https://arxiv.org/abs/2010.06808>`_, 2020.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> rule, params = graddrop(0.0, jax.random.key(0)), jnp.zeros(3)
      >>> rows = jnp.array([[1., 1., -2.], [2., -4., -1.]])
      >>> update, _ = rule.update(rows, rule.init(params), params)
      >>> update[0].item(), update[1].item() in (1.0, -4.0), update[2].item()
      (3.0, True, -3.0)
    """
    _check.interval("leak", leak, 0, 1)
    _check.key("key", key)

    def resolve(merged: list[list[Array]], roster: Roster) -> list[Array]:
        step_key = jax.random.fold_in(key, roster.step)
        share = _check.value_at(leak, roster.step, roster.weights.dtype)
        mass = roster.weights.sum()
        count = roster.present.sum().astype(mass.dtype) / positive_or_one(mass)
        update = []
        for index, (above, below) in enumerate(zip(*merged, strict=True)):
            total, size = above + below, above - below
            chance = (1 + total / positive_or_one(size)) / 2
            leaf_key = jax.random.fold_in(step_key, index)
            uniform = functools.partial(jax.random.uniform, leaf_key, dtype=jnp.float32)
            draw = roster.coordinates.draw(index, total, uniform)
            kept = jnp.where(draw.astype(total.dtype) < chance, above, below)
            update.append(count * (share * total + (1 - share) * kept))
        return update

    return reducer(Fold((POSITIVE_SUM, NEGATIVE_SUM), resolve))
