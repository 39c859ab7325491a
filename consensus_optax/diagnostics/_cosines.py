"""How the pairs of rows stand to each other."""

from __future__ import annotations

from collections.abc import Iterable

import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rows.verbs import decision_dtype
from consensus_optax._typing import Array
from consensus_optax.diagnostics._gramian import present
from consensus_optax.weightings._pairs import cosines, off_diagonal


def conflicting_share(gramian: Array, weights: Array | None = None) -> Array:
    r"""Share of the pairs of rows that conflict: a step along one harms the other.

    .. math:: \frac{|\{i < j : G_{ij} < 0\}|}{|\{i < j\}|}

    Guarantees: in [0, 1]; about 1/2 for random directions; scale-free.
    Edge cases: fewer than two rows: 0. A zero row conflicts with none, and counts.

    Args:
      gramian: (B, B), from :func:`gramian`.
      weights: (B,), 0 = absent; other values do not matter. None: all are there.

    Returns:
      () in the dtype of the Gramian.

    Cost: O(B^2).

    Examples:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1., 0.], [1., 1.], [-3., 1.], [0., -1.]])
      >>> conflicting_share(rows @ rows.T).item()
      0.6666666865348816
    """
    gramian, weights = present(gramian, weights)
    pairs = off_diagonal(weights > 0)
    return _share(pairs & (gramian < 0), pairs, gramian)


def cosine_quantiles(
    gramian: Array,
    quantiles: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0),
    weights: Array | None = None,
) -> Array:
    """Quantiles of the cosines of all pairs of different rows.

    Guarantees: in [-1, 1]; lengths of rows do not matter; linear interpolation, as in
    ``jnp.quantile``.
    Edge cases: a zero row has no direction: its pairs are left out. No pair: 0.

    Args:
      gramian: (B, B), from :func:`gramian`.
      quantiles: numbers in [0, 1].
      weights: (B,), 0 = absent; other values do not matter. None: all are there.

    Returns:
      (len(quantiles),) in the dtype of the Gramian.

    Cost: O(B^2 log B).

    Examples:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1., 0.], [2., 0.], [0., 3.]])
      >>> cosine_quantiles(rows @ rows.T, (0.0, 0.5, 1.0)).tolist()
      [0.0, 0.0, 1.0]
    """
    cosine, pairs = _pairs(gramian, weights)
    ascending = jnp.sort(jnp.where(pairs, cosine, 2), axis=None)
    # Every pair stands there twice, next to itself; one of the two is read.
    wide = decision_dtype(cosine)  # narrow ones do not count far
    last = jnp.maximum(pairs.sum() // 2 - 1, 0).astype(wide)
    position = jnp.asarray(quantiles, wide) * last
    lower = jnp.floor(position)
    at = lambda index: ascending[2 * index.astype(jnp.int32)]
    low, high = at(lower), at(jnp.minimum(lower + 1, last))
    between = low + (position - lower).astype(cosine.dtype) * (high - low)
    return jnp.where(pairs.any(), between, 0)


def share_within(
    gramian: Array, max_distances: tuple[float, ...], weights: Array | None = None
) -> Array:
    """Share of the pairs of rows whose cosine distance is at most a limit.

    What a cosine filter of that ``max_distance`` would accept, were all pairs compared:
    where to set it.

    Guarantees: in [0, 1], rising with the limit; lengths of rows do not matter.
    Edge cases: a zero row has no direction: its pairs are left out. No pair: 0.

    Args:
      gramian: (B, B), from :func:`gramian`.
      max_distances: cosine distances in [0, 2].
      weights: (B,), 0 = absent; other values do not matter. None: all are there.

    Returns:
      (len(max_distances),) in the dtype of the Gramian.

    Cost: O(B^2) for each limit.

    Examples:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[1., 0.], [2., 0.], [0., 3.]])
      >>> share_within(rows @ rows.T, (0.5, 1.0)).tolist()
      [0.3333333432674408, 1.0]
    """
    if not isinstance(max_distances, Iterable):
        _check.fail("max_distances", "a sequence of numbers", max_distances)
    cosine, pairs = _pairs(gramian, weights)
    within = [pairs & (1 - cosine <= limit) for limit in max_distances]
    return jnp.stack([_share(near, pairs, cosine) for near in within])


def _pairs(gramian: Array, weights: Array | None) -> tuple[Array, Array]:
    """Cosines, and the pairs of different rows that both have a direction."""
    gramian, weights = present(gramian, weights)
    cosine, moving = cosines(gramian)
    return cosine, off_diagonal((weights > 0) & moving)


def _share(chosen: Array, among: Array, like: Array) -> Array:
    """Share of the pairs among others, in the dtype of an array; 0 of none."""
    wide = decision_dtype(like)
    share = chosen.sum().astype(wide) / jnp.maximum(among.sum(), 1).astype(wide)
    return share.astype(like.dtype)
