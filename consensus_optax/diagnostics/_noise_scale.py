"""The simple noise scale: the batch size beyond which larger batches pay less."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from consensus_optax import _check
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._typing import Array
from consensus_optax.diagnostics._gramian import present


class NoiseScale(NamedTuple):
    """Estimates from one stack of rows.

    Attributes:
      gradient_squared: (), unbiased estimate of the squared norm of the true gradient;
        may be negative.
      noise_trace: (), unbiased estimate of the trace of the covariance of one
        example's gradient.
      noise_scale: (), noise_trace / gradient_squared, in examples; inf where the
        divisor is not positive.
    """

    gradient_squared: Array
    noise_trace: Array
    noise_scale: Array


def noise_scale(
    gramian: Array, weights: Array | None = None, group_size: int = 1
) -> NoiseScale:
    r"""Simple noise scale (critical batch size) from rows of b examples.

    .. math:: |G|^2 = \frac{N A - M}{N - 1}, \quad
        \mathrm{tr}\,\Sigma = \frac{b N (M - A)}{N - 1}, \quad
        B_{\mathrm{simple}} = \frac{\mathrm{tr}\,\Sigma}{|G|^2}
        \qquad\text{with } A = \|\bar g\|^2,\ M = \tfrac1N \sum_i \|g_i\|^2

    Over steps, smooth the first two by themselves and divide then, as :func:`probe`
    does: the quotient of one step is biased, and wild.

    Guarantees: the first two are unbiased if rows are means of independent examples;
    the noise scale is scale-free.
    Edge cases: fewer than two rows: nan, since nothing can be told.

    Args:
      gramian: (B, B), from :func:`gramian`.
      weights: (B,), 0 = absent; a row of weight w is the mean of w ``group_size``
        examples, and everything stays unbiased. None: all ones.
      group_size: b, examples in a row of weight 1.

    Returns:
      A :class:`NoiseScale`.

    Raises:
      ValueError: ``gramian`` is no (B, B), ``group_size`` is not a count.

    Cost: O(B^2).

    References: McCandlish et al., `An empirical model of large-batch training
    <https://arxiv.org/abs/1812.06162>`_, 2018.

    Examples:
      >>> import jax.numpy as jnp
      >>> rows = jnp.array([[2., 1.], [2., -1.]])
      >>> [float(x) for x in noise_scale(rows @ rows.T)]
      [3.0, 2.0, 0.6666666865348816]
    """
    _check.count("group_size", group_size)
    gramian, weights = present(gramian, weights)
    shares = weights / positive_or_one(weights.sum())
    product = lambda x, y: jnp.matmul(x, y, precision=lax.Precision.HIGHEST)
    of_mean = product(product(shares, gramian), shares)
    return estimates(of_mean, gramian.diagonal(), weights, group_size)


def estimates(
    of_mean: Array, squares: Array, weights: Array, group_size: int
) -> NoiseScale:
    """The same of the squared norms of the weighted mean and of the rows."""
    count = jnp.sum(weights > 0).astype(squares.dtype)
    total = weights.sum()
    shares = weights / positive_or_one(total)
    of_rows = jnp.matmul(shares, squares, precision=lax.Precision.HIGHEST)
    several = count > 1
    others = jnp.where(several, count - 1, 1)
    squared = (count * of_mean - of_rows) / others
    trace = group_size * total * (of_rows - of_mean) / others
    nan = jnp.asarray(jnp.nan, squares.dtype)
    squared, trace = jnp.where(several, squared, nan), jnp.where(several, trace, nan)
    return NoiseScale(squared, trace, ratio(trace, squared))


def ratio(trace: Array, squared: Array) -> Array:
    """The noise scale of two estimates: inf without signal, nan without estimates."""
    visible = squared > 0
    quotient = trace / jnp.where(visible, squared, 1)
    hidden = jnp.where(jnp.isnan(squared), jnp.nan, jnp.inf).astype(quotient.dtype)
    return jnp.where(visible, quotient, hidden)
