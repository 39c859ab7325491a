"""How rows spread about a weighted mean, from inner products about any point."""

from __future__ import annotations

import jax.numpy as jnp

from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.solvers import product
from consensus_optax._typing import Gramian, Number, PerRow


def about_mean(products: Gramian, counts: PerRow) -> Gramian:
    """A sixteenth of the inner products of the rows less their mean, (B, B).

    They may be four times as large as those that are given, and nothing is divided by
    the largest numbers there are: what one over these is, processors call zero.

    Args:
      products: inner products of the rows less some common point, (B, B).
      counts: (B,) >= 0, what each row counts in the mean.
    """
    shares = counts / positive_or_one(counts.sum())
    products = products / 16
    along = product(products, shares)
    return products - along[:, None] - along[None, :] + product(along, shares)


def covariance(products: Gramian, counts: PerRow) -> tuple[Gramian, Number]:
    r"""A matrix with the eigenvalues of the rows' covariance but for its unit, (B, B).

    Eigenvalues other than 0 of :math:`\sum_i c_i (g_i - \mu)(g_i - \mu)^T / \sum c`.

    Args:
      products: inner products of the rows less their mean, (B, B).
      counts: (B,) >= 0, c.

    Returns:
      The matrix over its trace, or 0, and the trace: the variance.
    """
    roots = jnp.sqrt(counts / positive_or_one(counts.sum()))
    matrix = roots[:, None] * products * roots[None, :]
    trace = jnp.maximum(jnp.trace(matrix), 0)
    return matrix / positive_or_one(trace), trace
