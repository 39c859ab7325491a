"""Bucketing: rows become means of random groups."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from consensus_optax import _check
from consensus_optax._rules.arithmetic import positive_or_one
from consensus_optax._rules.kinds import Mixing, Reads, Roster
from consensus_optax._running.named import named
from consensus_optax._typing import Array, PerNewRow, RowMap


@named
def bucketing(bucket_size: int, key: Array) -> Mixing:
    r"""Bucketing: every row becomes, with s - 1 others at random, one mean.

    Also known as: resampling.

    .. math:: g'_k = \frac1s \sum_{i = (k-1) s + 1}^{k s} g_{\pi(i)},
        \qquad k = 1, \dots, \lceil n / s \rceil

    with a random permutation of the rows, another one at every step. Means vary less
    than rows, so a robust rule tells honest ones better; but each arbitrary row spoils
    a bucket, so f of n rows become f of n / s.

    Guarantees: mixed rows are in the convex hull of the rows, and their weighted mean
    is that of the rows; the same key and step give the same groups.
    Edge cases: the last bucket may be smaller, and buckets beyond are absent.
    ``bucket_size=1``: the rows in another order.
    ``weights``: sample counts: a bucket is the weighted mean of its rows and weighs
    what they weigh together.

    Args:
      bucket_size: s >= 1, rows of one bucket; 2 is the authors' advice.
      key: random key; the number of the step is folded in.

    Returns:
      A :class:`Mixing`, for ``co.after``, from B rows to ceil(B / s).

    Raises:
      ValueError: ``bucket_size`` is no count.

    Cost: one sort of B numbers; for weightings nothing of the size of the rows.

    References: Karimireddy et al., `Byzantine-Robust Learning on Heterogeneous Datasets
    via Bucketing <https://arxiv.org/abs/2006.09365>`_, 2020.

    Examples:
      >>> import jax, jax.numpy as jnp, consensus_optax as co
      >>> mixing = co.bucketing(2, jax.random.key(0))
      >>> rule, params = co.after(mixing, co.mean()), jnp.zeros(1)
      >>> rows = jnp.array([[1.], [2.], [6.]])
      >>> rule.update(rows, rule.init(params), params)[0].tolist()
      [3.0]
    """
    _check.count("bucket_size", bucket_size)
    _check.key("key", key)

    def mix(products: None, roster: Roster) -> tuple[RowMap, PerNewRow]:
        del products
        size = roster.weights.shape[0]
        at_step = jax.random.fold_in(key, roster.step)
        # One number for each row from its own key: rows of padding change no other's.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            at_step, jnp.arange(size, dtype=jnp.int32)
        )
        numbers = jax.vmap(jax.random.uniform)(keys)
        places = jnp.argsort(jnp.argsort(jnp.where(roster.present, numbers, jnp.inf)))
        buckets = jnp.arange(-(-size // bucket_size))
        inside = (places // bucket_size)[None, :] == buckets[:, None]
        masses = jnp.where(inside, roster.weights[None, :], 0)  # (B', B)
        total = masses.sum(1)
        return masses / positive_or_one(total)[:, None], total

    return Mixing(mix, reads=Reads.NOTHING)
