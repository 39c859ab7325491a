"""Gradient Agreement Filtering: rows that point elsewhere are left out."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._rows.varying import varying_like
from consensus_optax._rules.arithmetic import SLACK, positive_or_one, root
from consensus_optax._rules.kinds import Roster, Weighting
from consensus_optax._running.named import named
from consensus_optax._running.reducer import Reducer, reducer
from consensus_optax._typing import Array, Gramian, Number, PerRow, Threshold, Tree


class CosineFilterState(NamedTuple):
    """What the filter did in the last step; a leading axis over leaves by leaf.

    Attributes:
      accepted: () float32, rows accepted, after the first if that is where the running
        gradient starts (a sum of gates if soft).
      cosine_mean: () float32, mean cosine of reference and row; 0 if none.
      cosine_min: () float32, the least of them; 0 if none.
    """

    accepted: Number
    cosine_mean: Number
    cosine_min: Number


class _Running(NamedTuple):
    """The running gradient, and what was seen of each row."""

    coefficients: Array  # (B,) of unit rows
    products: Array  # (B,) inner products of all unit rows with the running gradient
    mass: Array  # () weight of what the running gradient averages
    cosines: Array  # (B,) those of rows that were examined, else _UNSEEN


_UNSEEN = 2.0  # no cosine


@named
def cosine_filter(
    max_distance: Threshold = 0.97,
    average: str = "halving",
    temperature: Threshold | None = None,
) -> Reducer:
    r"""Gradient Agreement Filtering (GAF): skip rows whose cosine distance is large.

    Also known as: GAF, gradient agreement filtering.

    In the order of the rows, from :math:`g = g_1`, for m = 2..B:

    .. math:: g \leftarrow (g + g_m) / 2 \quad\text{if}\quad 1 - \cos(g, g_m) \le \tau

    Everything is read from the Gramian: the running gradient is a vector of B
    coefficients.

    Guarantees: in the convex hull of the rows; unchanged in direction if all rows are
    scaled. NOT invariant to the order of the rows: with ``"halving"`` the last
    accepted row weighs 1/2, the one before 1/4; an outlier in first place rejects
    everybody.

    Edge cases: nothing accepted (so also a single row): zero, not ready, as in the
    authors' code, which then makes no optimizer step; use :func:`skip_if_empty`.
    A zero row, or a running gradient of zero, has no direction: rejected. (In the
    authors' code its cosine is 0: accepted from a distance of 1 on.)

    ``weights``: 0 = absent; other values are sample counts with ``average="mean"``
    and have no meaning with ``"halving"``.

    Args:
      max_distance: largest cosine distance accepted, in [0, 2]; the authors recommend
        0.9 to 1. A number, array or schedule.
      average: ``"halving"`` as the authors' code does, or ``"mean"``, the running mean
        of all accepted rows. They agree for two rows.
      temperature: None for a hard threshold; else rows are averaged in by the gate
        sigmoid((max_distance - distance) / temperature).

    Returns:
      A :class:`Reducer` with ``accepted``, ``cosine_mean``, ``cosine_min`` in its
      state.

    Raises:
      ValueError: a static argument is out of range.

    Cost: one Gramian, O(B^2) for the decision, one combination.

    References: Chaubard et al., `Beyond gradient averaging in parallel optimization
    <https://arxiv.org/abs/2412.18052>`_, 2024.

    Examples:
      >>> import jax.numpy as jnp
      >>> rule, params = cosine_filter(0.5), jnp.zeros(2)
      >>> rows = jnp.array([[1., 0.], [-1., 0.], [1., 1.]])
      >>> update, state = rule.update(rows, rule.init(params), params)
      >>> update.tolist(), float(state.rule_state.accepted)
      ([1.0, 0.5], 1.0)
    """
    _check.interval("max_distance", max_distance, 0, 2)
    _check.one_of("average", average, ("halving", "mean"))
    if temperature is not None:
        _check.interval("temperature", temperature, 0, open_low=True)

    def init(params: Tree, dtype: Any) -> CosineFilterState:
        del params, dtype
        return CosineFilterState(*(jnp.zeros((), jnp.float32) for _ in range(3)))

    def weigh(
        gramian: Gramian, roster: Roster, state: CosineFilterState
    ) -> tuple[PerRow, CosineFilterState]:
        del state
        first = jnp.argmax(roster.present)
        norms = root(gramian.diagonal())
        divisors = positive_or_one(norms)
        index = jnp.arange(norms.shape[0])
        able = roster.present & (norms > 0) & (index != first)
        unit = gramian / divisors[None, :]
        gated = lambda seen, cosine: jnp.where(
            seen, gate(cosine, max_distance, temperature, roster.step), 0
        )

        def next_row(m: Array, running: _Running) -> _Running:
            # An accelerator takes long to start something and nothing to add B numbers:
            # what is carried is vectors, of which both sums are taken together.
            here = index == m
            square = (running.coefficients * running.products).sum()
            length = root(square)
            product = jnp.where(here, running.products, 0).sum()
            examined = able[m] & (length > 0)
            cosine = product / positive_or_one(length)
            share = gated(examined, cosine)
            if average == "halving":
                mass = running.mass
                move = share / 2
            else:
                weight = roster.weights[m]
                mass = running.mass + share * weight
                move = share * weight / positive_or_one(mass)
            added = jnp.where(here, move * norms, 0)
            return _Running(
                coefficients=(1 - move) * running.coefficients + added,
                products=(1 - move) * running.products + move * unit[m],
                mass=mass,
                cosines=jnp.where(here & examined, cosine, running.cosines),
            )

        start = _Running(
            coefficients=jnp.where(index == first, norms, 0),
            products=unit[first],
            mass=roster.weights[first],
            cosines=jnp.full_like(norms, _UNSEEN),
        )
        start = varying_like(start, gramian, roster.weights)
        end = lax.fori_loop(0, norms.shape[0], next_row, start)
        examined = end.cosines < _UNSEEN
        accepted = gated(examined, end.cosines).sum()
        count = examined.astype(norms.dtype).sum()
        numbers = (
            accepted,
            jnp.where(examined, end.cosines, 0).sum() / positive_or_one(count),
            jnp.where(count > 0, end.cosines.min(), 0),
        )
        weights = jnp.where(accepted > 0, end.coefficients / divisors, 0)
        return weights, CosineFilterState(*(x.astype(jnp.float32) for x in numbers))

    return reducer(Weighting(weigh, init, degree=0))


def gate(
    cosine: Array, max_distance: Threshold, temperature: Threshold | None, step: Array
) -> Array:
    """How far a row passes, in [0, 1]: 0 or 1 without a temperature."""
    margin = _check.value_at(max_distance, step, cosine.dtype) - (1 - cosine)
    if temperature is None:
        return (margin >= -SLACK).astype(cosine.dtype)
    return jax.nn.sigmoid(margin / _check.value_at(temperature, step, cosine.dtype))
